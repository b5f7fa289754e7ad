"""GELU and frozen LayerNorm on a CPU, compiled: fedsim/kernels/rows.cpp. Elsewhere these are PyTorch's.

Shapes: M rows, D width.
"""

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedsim.kernels.build import available, call


class Gelu(nn.Module):
    """GELU by the normal distribution, not by its tanh approximation."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and available(x.dtype):
            out: Tensor = _Gelu.apply(x)
            return out
        return F.gelu(x)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Keep the slope, as large as the input, which then need not be kept."""
        x = x.contiguous()
        out, slope = torch.empty_like(x), torch.empty_like(x)
        call("gelu_forward", x.dtype, x, out, slope, x.numel())
        ctx.save_for_backward(slope)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return slope * grad


class FrozenNorm(nn.LayerNorm):
    """A LayerNorm in front of products, whose weight and bias never train: fp32 (..., D) to the type of the products.

    That is autocast's where it is on, else fp32.
    """

    def __init__(self, source: nn.LayerNorm) -> None:
        super().__init__(source.normalized_shape, source.eps, device="meta")
        self.weight, self.bias = source.weight, source.bias

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        if kind == "cpu" and x.dtype == torch.float32 and available(dtype):
            out: Tensor = _Norm.apply(x, self.weight, self.bias, self.eps, dtype)
            return out
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        out, statistics = x.new_empty(x.shape, dtype=dtype), x.new_empty(rows, 2)
        call("norm_forward", dtype, x, weight, bias, out, statistics, rows, width, epsilon)
        ctx.save_for_backward(x, weight, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, statistics = ctx.saved_tensors
        found = torch.empty_like(x)
        call("norm_backward", grad.dtype, grad.contiguous(), x, weight, statistics, found, len(statistics), x.shape[-1])
        return found, None, None, None, None


def replace_rows(block: nn.Module, norms: Collection[str]) -> None:
    """Put Gelu in place of every exact nn.GELU below ``block``, FrozenNorm in place of its children ``norms``."""
    for name in norms:
        norm = getattr(block, name, None)
        if isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None:
            setattr(block, name, FrozenNorm(norm))
    for parent in block.modules():
        for name, child in parent.named_children():
            if type(child) is nn.GELU and child.approximate == "none":
                setattr(parent, name, Gelu())
