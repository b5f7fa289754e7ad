"""FedEx-LoRA: factors are averaged, and what the product of their means lacks goes into the frozen weights.

Shapes: G slices of a layer, R rank, D input width, O width of a slice.
"""

from fedsim.algorithms.parts.by_products import ByProducts, LayerSum, Renewed


class FedExLoRA(ByProducts):
    """Singhal et al., FedEx-LoRA, ACL 2025, arXiv 2410.09432: W0 += s (sum w_k B_k A_k - mean(B) mean(A)).

    Read: the released fed_agg.py, in a copy, which weighs all clients alike. The clients' weights stand here.
    """

    summary = "means of the factors, and their residual in the frozen weights (Singhal et al., 2025)"
    shifts_base = True
    averages_factors = True

    def renewed(self, layer: LayerSum) -> Renewed:
        assert layer.mean is not None, "it averages factors"
        return Renewed(*layer.mean, layer.total.minus(layer.mean).dense())
