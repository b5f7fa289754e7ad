"""FlexLoRA: the sum of the clients' updates, cut to the factors' rank.

Shapes: G slices of a layer, R rank, D input width, O width of a slice.
"""

from fedsim.algorithms.parts.by_products import ByProducts, LayerSum, Renewed


class FlexLoRA(ByProducts):
    """Bai et al., FlexLoRA, NeurIPS 2024, arXiv 2402.11505: U S V' = sum w_k B_k A_k; B = U S and A = V', R of each.

    Read: a description of the paper, and FedLLM-Factory's code, which leaves a root of S out of the product.
    """

    summary = "the sum of the clients' updates by its singular vectors, cut to the rank (Bai et al., 2024)"

    def renewed(self, layer: LayerSum) -> Renewed:
        left, values, right = layer.total.spectrum.first(layer.before.a.shape[1])
        return Renewed(right, left * values[:, None])
