"""RoLoRA: rounds take turns in which of the LoRA factors they train, so that averaging is exact."""

from typing import Any

from fedsim.algorithms.base import TRAINED_KINDS, Algorithm, Facts, Phase
from fedsim.algorithms.parts.factors import factor_pairs


class RoLoRA(Algorithm):
    """Chen et al., Robust federated finetuning of LLMs via alternating optimization of LoRA, NeurIPS 2025, section 3.

    Odd rounds (counted from 1) train and average B under a common A, even rounds A under a common B: each is one phase
    of DEeR's round. B comes first: A has no gradient while B is zero. The classifier trains in every round. First
    described in arXiv 2409.02346; read in notes on section 3 and algorithm 1.
    """

    summary = "rounds take turns in training B and A, so that averaging is exact (Chen et al., 2025)"

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        factor_pairs(self.specs, "rolora")

    def phases(self, round: int) -> tuple[Phase, ...]:
        if round % 2:
            return (Phase("b", TRAINED_KINDS - {"lora_a"}),)
        return (Phase("a", TRAINED_KINDS - {"lora_b"}),)
