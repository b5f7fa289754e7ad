"""DP-DyLoRA: each local pass trains the first few ranks of the LoRA factors, and validation chooses how many are used.

Shapes: K clients in a block, G slices of a layer, R LoRA rank, D input width, O width of a slice. Factors have the
shapes (K, G, R, D) and (K, G, O, R), the server's have no client axis.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Facts, GradOf, Step, Tensors
from fedsim.algorithms.parts.abilities import Choosing
from fedsim.algorithms.parts.own_ranks import refuse_ranks
from fedsim.errors import UserError

#: The ranks for which the published code says what validation tries.
RELEASED_RANKS = (2, 4, 8, 16)


class DPDyLoRA(Choosing):
    """Xu et al., DP-DyLoRA, arXiv 2405.06368: the nested ranks of DyLoRA (Valipour et al., EACL 2023), averaged.

    At rank b a layer's update is lora_alpha / b times B[:, :b] A[:b]. In training b is drawn uniformly from 1..R, by
    each client for each pass over its images, as in DEeR's published baseline; Xu et al. draw one for all clients of a
    round. The global model has the rank that validation prefers among 1, 2, 4, ... and R.

    ``released``: the published baseline counts from 0 in training and from 1 in validation, so that there rank b uses
    b + 1 columns, or R where there are no more, at lora_alpha / (b + 1).
    """

    summary = "nested LoRA ranks, one drawn per local pass, the best chosen by validation (Xu et al., 2024)"
    remakes_factors = "cuts and scales their ranks"
    has_own_scale = True
    chosen: ClassVar[str] = "rank"

    class Config(Algorithm.Config):
        form: Literal["paper", "released"] = Field(
            "paper", description="What rank b means in validation: b columns; released: one more, off by one."
        )
        frozen: bool = Field(
            False, description="Whether of a pass's ranks only the last one learns, as in DyLoRA's frozen variant."
        )

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        ranks = {spec.shape[-1] for spec in self.specs.values() if spec.kind == "lora_b"}
        if not ranks:
            raise UserError("model.lora", "null with algorithm.name: dp_dylora", "a section, {} for its defaults")
        (self.rank,) = ranks
        refuse_ranks(facts, "dp_dylora")
        if config.form == "released" and self.rank not in RELEASED_RANKS:
            found = f"{self.rank} with algorithm.form: released"
            raise UserError("model.lora.r", found, f"one of {', '.join(map(str, RELEASED_RANKS))}, as the code has it")

    def gradient(self, params: Tensors, grad_of: GradOf, step: Step) -> Tensors:
        drawn_K = 1 + (step.chance * self.rank).long()
        scale_KR = nested(drawn_K, self.rank)
        grads = grad_of(self.scaled(params, scale_KR))
        if self.config.frozen:
            scale_KR = scale_KR * torch.nn.functional.one_hot(drawn_K - 1, self.rank)
        return self.scaled(grads, scale_KR)

    def choices(self, params: Tensors) -> Mapping[int, Tensors]:
        ranks = [2**power for power in range(self.rank.bit_length()) if 2**power < self.rank] + [self.rank]
        more = 1 if self.config.form == "released" else 0
        return {rank: self.scaled(params, nested(torch.tensor(rank + more), self.rank)) for rank in ranks}

    def scaled(self, tensors: Tensors, scale: Tensor) -> dict[str, Tensor]:
        """Return tensors, the ranks of LoRA factors among them times ``scale``, (K, R) or (R,)."""
        found = dict(tensors)
        for name, value in tensors.items():
            if self.specs[name].kind in ("lora_a", "lora_b"):
                own = scale[..., None, :, None] if self.specs[name].kind == "lora_a" else scale[..., None, None, :]
                found[name] = value * own.to(value)
        return found


def nested(rank: Tensor, num_ranks: int) -> Tensor:
    """Return factors (..., R) for the ranks of A and of B that leave an update of ``rank`` (...), 1 or more.

    The first ``rank`` of both times sqrt(R / rank), so that lora_alpha / R becomes lora_alpha / rank.
    """
    used = torch.arange(num_ranks, device=rank.device) < rank[..., None]
    return used * (num_ranks / rank[..., None].double()).sqrt()
