"""FLoRA: the sum of the clients' updates goes into the frozen weights, and the factors start anew every round.

Shapes: G slices of a layer, R rank, D input width, O width of a slice.
"""

import math

import torch

from fedsim.algorithms.parts.by_products import ByProducts, LayerSum, Renewed
from fedsim.models.specs import A
from fedsim.seeding import numpy_stream


class FLoRA(ByProducts):
    """Wang et al., FLoRA, NeurIPS 2024, arXiv 2409.05976: stacked factors, whose product is the sum of the products.

    B starts at zero and A as LoRA draws it (Hu et al., ICLR 2022, section 4.1), from a stream of the round. Read: a
    description of the paper, and code of others (fedex-lora's, FedLLM-Factory's), which do not draw again.
    """

    summary = "clients' updates are added to the frozen weights, factors start anew (Wang et al., 2024)"
    shifts_base = True

    def renewed(self, layer: LayerSum) -> Renewed:
        bound = 1 / math.sqrt(layer.before.a.shape[-1])
        stream = numpy_stream(self.facts.seed, f"init/{layer.path}{A}", round=layer.round)
        a = torch.from_numpy(stream.uniform(-bound, bound, tuple(layer.before.a.shape))).to(layer.before.a.device)
        return Renewed(a, torch.zeros_like(layer.before.b), layer.total.dense())
