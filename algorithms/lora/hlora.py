"""HLoRA, as NVFlare's MedGemma example has it: as FlexLoRA, but that A holds the singular values.

Shapes: G slices of a layer, R rank, D input width, O width of a slice.
"""

from fedsim.algorithms.parts.by_products import ByProducts, LayerSum, Renewed


class HLoRA(ByProducts):
    """HLoRA, the aggregator of NVFlare's examples/advanced/medgemma, at one rank: B = U, A = S V', R of each.

    Read: that example's code. Its stacks have roots of the weights on both sides, which gives the same product.
    """

    summary = "as flexlora, with orthonormal columns in B (NVFlare's MedGemma example)"

    def renewed(self, layer: LayerSum) -> Renewed:
        left, values, right = layer.total.spectrum.first(layer.before.a.shape[1])
        return Renewed(values[..., None] * right, left)
