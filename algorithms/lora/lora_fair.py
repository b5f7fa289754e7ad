"""LoRA-FAIR: factors are averaged, and B gets a correction that brings the product nearer to the clients' mean update.

Shapes: G slices of a layer, R rank, D input width, O width of a slice.
"""

import torch
from pydantic import Field

from fedsim.algorithms.base import Algorithm
from fedsim.algorithms.parts.by_products import ByProducts, LayerSum, Renewed


class LoRAFAIR(ByProducts):
    """Bian et al., LoRA-FAIR, ICCV 2025, arXiv 2411.14961, equation 8, by least squares.

    dB = argmin ||M - (mean(B) + dB) mean(A)||^2 + strength ||dB||^2 with M = sum w_k B_k A_k, which has the solution
    (M - mean(B) mean(A)) A' (A A' + strength I)^-1. The paper compares by cosine and takes steps of SGD: as its
    strength goes to zero that has the same direction, and a scale that the steps leave open. Read: the abstract, two
    descriptions of equation 8, and FedProC's code.
    """

    summary = "means of the factors, B corrected towards the mean update (Bian et al., 2025)"
    averages_factors = True

    class Config(Algorithm.Config):
        strength: float = Field(0.01, gt=0, description="Weight of the correction's squared norm; lambda.")

    def renewed(self, layer: LayerSum) -> Renewed:
        assert layer.mean is not None, "it averages factors"
        a, b = layer.mean
        eye = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
        lacking = layer.total.minus(layer.mean).times(a.mT)
        return Renewed(a, b + torch.linalg.solve(a @ a.mT + self.config.strength * eye, lacking, left=False))
