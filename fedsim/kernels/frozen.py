"""Products with weights that never change, which may therefore be laid out once as the processor wants them.

On a CPU oneDNN packs both the weight and its transpose, for the way forward and the way back; a linear layer of
PyTorch's would do so at every call, or take a slower path (benchmarks/LOG.md). The packed weight takes the place of
the plain one, whose values ``plain`` gives back. Elsewhere these are PyTorch's products.

Shapes: M rows, D input width, O output width.
"""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FrozenProduct:
    """x W' + bias, and its way back, for a frozen weight (O, D), plain or packed, and bias (O,)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = packed(weight.detach())
        self.bias = None if bias is None else bias.detach()

    def forward(self, x_MD: Tensor) -> Tensor:
        """Return (M, O); ``x_MD`` in the type of the weight."""
        return multiply(x_MD, self.weight, self.bias)

    def backward(self, grad_MO: Tensor) -> Tensor:
        """Return the gradient (M, D) of the input."""
        return multiply(grad_MO, self.transposed, None)

    @cached_property
    def transposed(self) -> Tensor:
        """The weight of the way back, (D, O)."""
        return packed(plain(self.weight).T)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and multiplies numbers of this type on this processor; bf16 wants AVX-512 or the like."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed(weight: Tensor) -> Tensor:
    """Return a weight as oneDNN wants it, where it multiplies such numbers; the layout suits any number of rows."""
    if weight.is_mkldnn or weight.device.type != "cpu" or not can_pack(weight.dtype):
        return weight
    out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return out


def plain(weight: Tensor) -> Tensor:
    """Return a weight, packed or not, as PyTorch has it."""
    return weight.to_dense() if weight.is_mkldnn else weight


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W' + bias."""
    if not weight.is_mkldnn:
        return F.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class FrozenLinear(nn.Linear):
    """A linear layer whose weight and bias never train; takes (..., D), gives (..., O) in the weight's type."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__(source.in_features, source.out_features, source.bias is not None, device="meta")
        self.weight = nn.Parameter(packed(source.weight.detach()), requires_grad=False)
        self.bias = source.bias
        self._products: dict[tuple[int, int], FrozenProduct] = {}

    def product(self, start: int, stop: int) -> FrozenProduct:
        """The product with the rows ``start`` to ``stop`` of the weight, which give these columns of the output."""
        if (start, stop) not in self._products:
            bias = None if self.bias is None else self.bias[start:stop]
            weight = self.weight if stop - start == self.out_features else plain(self.weight)[start:stop]
            self._products[start, stop] = FrozenProduct(weight, bias)
        return self._products[start, stop]

    def forward(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self.product(0, self.out_features))


def frozen_linear(x: Tensor, product: FrozenProduct) -> Tensor:
    """Return the product's (..., O) for ``x`` (..., D), in the weight's type and with a gradient for ``x``."""
    rows = x.to(product.weight.dtype).flatten(0, -2)
    out: Tensor = _Product.apply(rows, product)
    return out.view(*x.shape[:-1], len(product.weight))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, product: FrozenProduct) -> Tensor:
        ctx.product = product
        return product.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.product.backward(grad), None


def freeze_linears(root: nn.Module) -> None:
    """Put a FrozenLinear in place of every linear layer below ``root``."""
    for parent in list(root.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, FrozenLinear(child))


def transpose_linears(root: nn.Module) -> None:
    """Lay out all products below ``root`` for the way back now; the first step would do so between its activations."""
    for module in root.modules():
        if isinstance(module, FrozenLinear):
            _ = module.product(0, module.out_features).transposed


def cast_products(root: nn.Module) -> None:
    """Cast the frozen weights of all linear layers to bf16 once, instead of at every step."""
    for module in root.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
