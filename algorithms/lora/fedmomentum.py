"""FedMomentum: the largest singular vectors of the sum go on as factors, the rest goes into the frozen weights.

Shapes: G slices of a layer, R rank, D input width, O width of a slice.
"""

from fedsim.algorithms.parts.by_products import ByProducts, LayerSum, Renewed
from fedsim.algorithms.parts.low_rank import Pair


class FedMomentum(ByProducts):
    """Yan et al., FedMomentum, arXiv 2603.08014: B = U sqrt(S) and A = sqrt(S) V', R of each.

    Read: the abstract, and FedLLM-Factory's code. That draws a sketch of the sum, which is exact here, and cuts the
    residual at a share of the energy of 0.9999; here all of it is kept, in units of B A.
    """

    summary = "singular vectors go on as factors, the residual into the frozen weights (Yan et al., 2026)"
    shifts_base = True

    def renewed(self, layer: LayerSum) -> Renewed:
        left, values, right = layer.total.spectrum.first(layer.before.a.shape[1])
        root = values.sqrt()
        a, b = root[..., None] * right, left * root[:, None]
        return Renewed(a, b, layer.total.minus(Pair(a, b)).dense())
