"""FFA-LoRA: the down-projections A stay as they were drawn; only B trains and is averaged."""

from algorithms.base import TRAINED_KINDS, Algorithm, Phase


class FFALoRA(Algorithm):
    """Sun et al., Improving LoRA in privacy-preserving federated learning, ICLR 2024, section 4."""

    summary = "A frozen at its first draw, B trained (Sun et al., 2024)"

    def phases(self, round: int) -> tuple[Phase, ...]:
        del round
        return (Phase(kinds=TRAINED_KINDS - {"lora_a"}),)
