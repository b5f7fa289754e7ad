"""FedRot-LoRA: each client turns its LoRA factors towards the server's last ones before they are averaged.

Shapes: K clients in a block, G slices of a layer, R rank, D input width, O output width of a slice; factors of clients
are A (K, G, R, D) and B (K, G, O, R), the server's have no client axis.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.algorithms.base import PARAMS, Algorithm, Facts, Payload, Update
from fedsim.algorithms.parts.factors import factor_pairs
from fedsim.algorithms.parts.own_ranks import refuse_ranks


class FedRotLoRA(Algorithm):
    """Zhang et al., FedRot-LoRA: Mitigating rotational misalignment in federated LoRA, ICML 2026.

    B A is (B T)(T' A) for every rotation T, so that clients may have one update in factors that cancel in a mean. A
    client sends B T and T' A. In odd rounds (counted from 1) T brings T' A nearest to the A that the round began with,
    in even ones B T nearest to its B: an orthogonal Procrustes problem with det T = 1. T is softened: what is sent is
    turned by the rotation nearest to (1 - strength) I + strength T. Read in notes on the paper and in its code.

    ``released``: the published code does not turn in round 1, and begins with A in round 2.
    """

    summary = "clients rotate their factors towards the server's before averaging (Zhang et al., 2026)"

    class Config(Algorithm.Config):
        form: Literal["paper", "released"] = Field(
            "paper", description="Whether odd rounds turn towards A; released: even ones, and the first not at all."
        )
        strength: float = Field(
            0.5, ge=0, le=1, description="How far factors are turned, lambda; 1: all the way, 0 is FedAvg."
        )

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        self.pairs = factor_pairs(self.specs, "fedrot_lora")
        refuse_ranks(facts, "fedrot_lora")

    def pre_aggregate(self, update: Update) -> Payload:
        change = self.sent(update.delta)
        turn = update.round - (self.config.form == "released")
        for a, b in self.pairs if turn > 0 else ():
            new_a, new_b = (update.after[name].double() for name in (a, b))
            old_a, old_b = (update.before[name].double() for name in (a, b))
            alike_KGRR = new_a @ old_a.mT if turn % 2 else new_b.mT @ old_b
            turn_KGRR = self.softened(nearest_rotation(alike_KGRR))
            change |= {a: turn_KGRR.mT @ new_a - old_a, b: new_b @ turn_KGRR - old_b}
        return Payload(mean={PARAMS: change})

    def softened(self, turn: Tensor) -> Tensor:
        """Return rotations (..., R, R) so far towards ``turn`` as ``strength`` says."""
        strength: float = self.config.strength
        whole = torch.eye(turn.shape[-1], dtype=turn.dtype, device=turn.device)
        return nearest_rotation((1 - strength) * whole + strength * turn)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """Return the rotations T, det T = 1, with the largest trace of T' ``matrix``, (..., R, R) (Kabsch, 1976)."""
    left, _, right = torch.linalg.svd(matrix)
    sign = torch.linalg.det(left @ right).sign()
    # A reflection is undone along the direction that counts least.
    left = torch.cat([left[..., :-1], left[..., -1:] * sign[..., None, None]], dim=-1)
    rotation: Tensor = left @ right
    return rotation
