"""FedSVD: clients train B under a common A, and the server turns both so that A's rows are orthonormal.

Shapes: G slices of a layer, R rank, D input width, O output width of a slice; A (G, R, D) and B (G, O, R).
"""

from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from fedsim.algorithms import base
from fedsim.algorithms.parts.factors import factor_pairs
from fedsim.errors import UserError


class FedSVD(base.Algorithm):
    """Lee et al., FedSVD: Adaptive orthogonalization for private federated learning with LoRA, NeurIPS 2025, section 3.

    As in FFA-LoRA clients train and send B alone. From U S V' = B A the server then takes A = V' and B = U S, which
    changes no product: A has the directions of the clients' mean update, and norm 1, so that it makes no gradient of B
    longer. The first round's A is as drawn, and ``interval`` is the ``recalculate_svd_period`` of the published code.
    """

    summary = "B trained, the server re-orthogonalises A by an SVD of B A (Lee et al., 2025)"

    class Config(base.Algorithm.Config):
        interval: int | None = Field(
            1, ge=1, description="Rounds between two re-orthogonalisations; null: none, which is FFA-LoRA."
        )

        def check_training(self, train: base.TrainConfig) -> None:
            if train.keep_optimizer and self.interval is not None:
                found = "true with fedsvd, after whose rounds B has other coordinates than its moments"
                raise base.KeyedError("train.keep_optimizer", found, "false, or algorithm.interval: null")

    def __init__(self, config: Any, facts: base.Facts) -> None:
        super().__init__(config, facts)
        self.pairs = factor_pairs(self.specs, "fedsvd")
        if config.interval is not None:
            self.assumes_fresh = "its server changes the A that clients' B are about"
        for a, b in self.pairs:
            (rank, width_in), width_out = self.specs[a].shape[-2:], self.specs[b].shape[-2]
            if rank > min(width_in, width_out):
                found = f"{rank} with algorithm.name: fedsvd, more than the sides of {width_out} x {width_in} matrices"
                raise UserError("model.lora.r", found, f"at most {min(width_in, width_out)}")

    def phases(self, round: int) -> tuple[base.Phase, ...]:
        return (base.Phase(kinds=base.TRAINED_KINDS - {"lora_a"}),)

    def post_aggregate(self, state: base.ServerState, aggregate: base.Aggregate) -> base.ServerState:
        state = super().post_aggregate(state, aggregate)
        if self.config.interval is None or (state.round + 1) % self.config.interval:
            return state
        params = dict(state.params)
        for a, b in self.pairs:
            params[a], params[b] = orthogonalised(params[a], params[b])
        return replace(state, params=params)


def orthogonalised(a_GRD: Tensor, b_GOR: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of the same product B A, orthonormal rows in A, and in B the left singular vectors times values.

    Of a row of A the largest element is positive. In float64 on the CPU, from the factors alone: with A' = Q L the SVD
    of B L' has R columns. Where B has less than rank R the other rows of A stay in the space of those that it had.
    """
    columns_GDR, small_GRR = torch.linalg.qr(a_GRD.cpu().double().mT)
    left_GOR, values_GR, right_GRR = torch.linalg.svd(b_GOR.cpu().double() @ small_GRR.mT, full_matrices=False)
    rows_GRD = right_GRR @ columns_GDR.mT
    signs_GR1 = rows_GRD.gather(2, rows_GRD.abs().argmax(2, keepdim=True)).sign()
    columns_GOR = left_GOR * values_GR[:, None] * signs_GR1.mT
    return (rows_GRD * signs_GR1).to(a_GRD), columns_GOR.to(b_GOR)
