"""FLoRIST: of the sum's singular values as many as hold a share of its energy.

Shapes: G slices of a layer, R rank, D input width, O width of a slice, Q singular values.
"""

import torch
from pydantic import Field

from fedsim.algorithms.base import Algorithm
from fedsim.algorithms.parts.by_products import ByProducts, LayerSum, Renewed


class FLoRIST(ByProducts):
    """Ramesh and Dass, FLoRIST, MLSys 2026, arXiv 2506.09199: B = U S and A = V', p of each.

    p is the least number for which the p largest squared values are the share ``energy`` of all. The paper's server
    also scores with what is beyond the clients' rank; here p ends at R. Where p is less B has zeros and A its further
    singular vectors, as the code's ``trained_a`` has it: zeros in both would never train again. Read: the beginning of
    the paper, descriptions of it, and a copy of its code.
    """

    summary = "as flexlora, with no more ranks than hold a share of the energy (Ramesh and Dass, 2026)"

    class Config(Algorithm.Config):
        energy: float = Field(0.9, gt=0, le=1, description="Share of the squared singular values that is kept; tau.")

    def renewed(self, layer: LayerSum) -> Renewed:
        spectrum = layer.total.spectrum
        squares = spectrum.values.square()
        before = squares.cumsum(1) - squares
        is_kept = before < self.config.energy * squares.sum(1, keepdim=True)
        left, values, right = spectrum._replace(values=torch.where(is_kept, spectrum.values, 0)).first(
            layer.before.a.shape[1]
        )
        return Renewed(right, left * values[:, None])
