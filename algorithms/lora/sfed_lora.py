"""SFed-LoRA: FedSA-LoRA with an update that grows with the clients of a round and shrinks slower with the rank."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fedsim.algorithms.base import Facts, GradOf, Groups, Step, Tensors, Update
from fedsim.algorithms.parts.factors import factor_pairs
from fedsim.algorithms.parts.own_ranks import refuse_ranks
from fedsim.algorithms.parts.personal import Personal


class SFedLoRA(Personal):
    """Huang et al., Stabilized fine-tuning with LoRA in federated learning, arXiv 2603.08058.

    As in FedSA-LoRA, on which the paper stands, A is averaged and B stays with the client. A layer's update is
    lora_alpha * sqrt(N / R) * B A, with N the clients of a round and R the rank, in place of lora_alpha / R * B A. The
    model keeps its own scale: whatever is computed sees sqrt(N R) * B in place of B, and the gradient of B follows by
    the chain rule, so that every optimiser steps as under the new scale. Read in its abstract and in notes on it, which
    give its forward pass and its algorithm; there N is the number of clients whose A are averaged.
    """

    summary = "FedSA-LoRA with the update scaled by alpha sqrt(N / r) (Huang et al., 2026)"
    remakes_factors = "multiplies B"
    has_own_scale = True
    kept_kinds = frozenset({"lora_b"})

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        (rank,) = {self.specs[b].shape[-1] for _, b in factor_pairs(self.specs, "sfed_lora")}
        refuse_ranks(facts, "sfed_lora")
        self.growth = math.sqrt(facts.clients_per_round * rank)

    def gradient(self, params: Tensors, grad_of: GradOf, step: Step) -> Tensors:
        return self._grown(grad_of(self._grown(params)))

    def client_params(self, kept: Sequence[Tensors], params: Tensors, update: Update | None = None) -> Groups:
        # Whatever is measured and exported has B as the model's own scale needs it.
        return {"own": self._grown(super().client_params(kept, params, update)["own"])}

    def _grown(self, tensors: Tensors) -> dict[str, Tensor]:
        kept = self._own(tensors)
        return {name: self.growth * value if name in kept else value for name, value in tensors.items()}
