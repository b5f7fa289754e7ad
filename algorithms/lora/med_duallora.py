"""Med-DualLoRA: a shared and an own pair of factors train together, and the shared one is averaged."""

from fedsim.algorithms.parts.two_levels import TwoLevels


class MedDualLoRA(TwoLevels):
    """Perramon-Llussa et al., Med-DualLoRA, arXiv 2603.10967, as its abstract has it; the equations were not read.

    W = W_0 + B_g A_g + B_k A_k. A client trains both pairs and the head at once from the server's B_g A_g and its own
    B_k A_k; shared pair and head are averaged. The paper finds the last two blocks enough: ``model.lora.layers``.
    """

    summary = "a shared and an own pair of LoRA factors, trained together (Perramon-Llussa et al., 2026)"
