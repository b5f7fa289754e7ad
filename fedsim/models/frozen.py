"""Products with weights that never change, which may therefore be laid out once as the processor wants them.

On a CPU oneDNN packs both the weight and its transpose, for the way forward and the way back; a linear layer of
PyTorch's would do so at every call, or take a slower path (benchmarks/LOG.md). Elsewhere these are PyTorch's
products.

Shapes: M rows, D input width, O output width.
"""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FrozenProduct:
    """x W' + bias, and its way back, for a frozen weight (O, D) and bias (O,)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight.detach()
        self.bias = None if bias is None else bias.detach()
        self._packs = weight.device.type == "cpu" and can_pack(weight.dtype)

    def forward(self, x_MD: Tensor) -> Tensor:
        """Return (M, O); ``x_MD`` in the type of the weight."""
        if self._packs:
            return packed_linear(x_MD, self._there, self.bias)
        return F.linear(x_MD, self.weight, self.bias)

    def backward(self, grad_MO: Tensor) -> Tensor:
        """Return the gradient (M, D) of the input."""
        if self._packs:
            return packed_linear(grad_MO, self._back, None)
        return grad_MO @ self.weight

    @cached_property
    def _there(self) -> Tensor:
        return pack(self.weight)

    @cached_property
    def _back(self) -> Tensor:
        return pack(self.weight.T.contiguous())


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and multiplies numbers of this type on this processor; bf16 wants AVX-512 or the like."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(weight: Tensor) -> Tensor:
    """Return a weight as oneDNN wants it; the layout suits any number of rows."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W' + bias for a packed W."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


class FrozenLinear(nn.Linear):
    """A linear layer whose weight and bias never train; takes (..., D), gives (..., O) in the weight's type."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__(source.in_features, source.out_features, source.bias is not None, device="meta")
        self.weight, self.bias = source.weight, source.bias

        self._products: dict[tuple[int, int], FrozenProduct] = {}

    def product(self, start: int, stop: int) -> FrozenProduct:
        """The product with the rows ``start`` to ``stop`` of the weight, which give these columns of the output."""
        if (start, stop) not in self._products:
            bias = None if self.bias is None else self.bias[start:stop]
            self._products[start, stop] = FrozenProduct(self.weight[start:stop], bias)
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


def cast_products(root: nn.Module) -> None:
    """Cast the frozen weights of all linear layers to bf16 once, instead of at every step."""
    for module in root.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
