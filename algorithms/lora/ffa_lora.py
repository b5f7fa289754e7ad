"""FFA-LoRA: the down-projections A stay as they were drawn; only B trains and is averaged."""

from typing import Any

from fedsim.algorithms.base import TRAINED_KINDS, Algorithm, Facts, Phase
from fedsim.algorithms.parts.factors import factor_pairs


class FFALoRA(Algorithm):
    """Sun et al., Improving LoRA in privacy-preserving federated learning, ICLR 2024, section 4."""

    summary = "A frozen at its first draw, B trained (Sun et al., 2024)"

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        factor_pairs(self.specs, "ffa_lora")

    def phases(self, round: int) -> tuple[Phase, ...]:
        return (Phase(kinds=TRAINED_KINDS - {"lora_a"}),)
