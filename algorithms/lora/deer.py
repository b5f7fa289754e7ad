"""DEeR's deviation eliminator: clients train B with a common A, then A with a common B.

With one factor equal on all clients, mean(B A) = mean(B) mean(A): the aggregate is what averaging the full
updates would give. Each phase is a local training with a fresh optimiser and an aggregation of its own.
"""

from typing import Any

from fedsim.algorithms.base import TRAINED_KINDS, Algorithm, Facts, Phase
from fedsim.algorithms.parts.factors import factor_pairs


class DEeR(Algorithm):
    """Zhu et al., DEeR, IEEE TMI 2024: the deviation eliminator. Its noise regulator is a privacy mechanism."""

    summary = "alternates between the LoRA factors, so that averaging is exact (Zhu et al., 2024)"

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        factor_pairs(self.specs, "deer")

    def phases(self, round: int) -> tuple[Phase, ...]:
        return (Phase("b", TRAINED_KINDS - {"lora_a"}), Phase("a", TRAINED_KINDS - {"lora_b"}))
