"""GELU, PReLU and frozen LayerNorm on a CPU, compiled: fedsim/kernels/rows.cpp. Elsewhere these are PyTorch's.

Shapes: M rows, D width.
"""

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedsim.kernels.build import available, call
from fedsim.machine.loading import loaded


class Gelu(nn.Module):
    """GELU by the normal distribution, not by its tanh approximation.

    ``alone``: nobody else reads the input, so that on a CPU what the way back needs may take its place.
    """

    def __init__(self, *, alone: bool = False) -> None:
        super().__init__()
        self.alone = alone

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and available(x.dtype):
            out: Tensor = _Gelu.apply(x, self.alone)
            return out
        return F.gelu(x)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alone: bool) -> Tensor:
        """Keep the slope, as large as the input, which then need not be kept."""
        x = x.contiguous()
        out, slope = torch.empty_like(x), x.detach() if alone else torch.empty_like(x)
        call("gelu_forward", x.dtype, x, out, slope, x.numel())
        ctx.save_for_backward(slope)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * grad, None


#: Of so many numbers at once ``prelu_backward`` gives what the slope's gradient adds up from.
PRELU_NUMBERS = 4096


class PRelu(nn.PReLU):
    """``nn.PReLU`` with one slope for all channels, whose way back takes a third of the time."""

    def forward(self, input: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        if not available(dtype):
            return super().forward(input)
        out: Tensor = _PRelu.apply(input.to(dtype), self.weight.to(dtype))
        return out


class _PRelu(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, slope: Tensor) -> Tensor:
        return F.prelu(x, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], _output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        # What is not in one piece becomes so; a gradient lies as its input does.
        x = x.contiguous() if torch.empty_like(x).stride() != x.stride() else x
        if grad.stride() != x.stride():
            grad = torch.empty_like(x).copy_(grad)
        found, parts = torch.empty_like(x), torch.empty(-(-x.numel() // PRELU_NUMBERS))
        call("prelu_backward", x.dtype, grad, x, slope.float(), found, parts, x.numel())
        return found, parts.sum(dtype=torch.float64).to(slope.dtype).view(1)

    @staticmethod
    def vmap(_info: Any, in_dims: tuple[int | None, ...], x: Tensor, slope: Tensor) -> tuple[Tensor, int]:
        """Several clients have PyTorch's, with a slope of each."""
        plain: Tensor = torch.vmap(F.prelu, in_dims)(x, slope)
        return plain, 0


class FrozenNorm(nn.LayerNorm):
    """A LayerNorm in front of products, whose weight and bias never train: fp32 (..., D) to the type of the products.

    That is autocast's where it is on, else fp32.
    """

    def __init__(self, source: nn.LayerNorm) -> None:
        super().__init__(source.normalized_shape, source.eps, device="meta")
        self.weight, self.bias = source.weight, source.bias

    def forward(self, x: Tensor) -> Tensor:
        dtype = self._output_type(x)
        if self._compiles(x, dtype):
            normal: Tensor = _Norm.apply(x, None, self.weight, self.bias, self.eps, dtype)[1]
            return normal
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def of_sum(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return x plus what a branch adds to it, and the norm of the sum; without a branch x itself."""
        if branch is None:
            return x, self(x)
        dtype = self._output_type(x)
        if branch.dtype == dtype and self._compiles(x, dtype):
            total, out = _Norm.apply(x, branch, self.weight, self.bias, self.eps, dtype)
            return total, out
        total = x + branch
        return total, self(total)

    def _output_type(self, x: Tensor) -> torch.dtype:
        kind = x.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype

    def _compiles(self, x: Tensor, dtype: torch.dtype) -> bool:
        return x.device.type == "cpu" and x.dtype == torch.float32 and available(dtype)


class _Norm(torch.autograd.Function):
    """The sum (..., D) of x and a branch, or None where there is no branch, and its LayerNorm."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        branch: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        epsilon: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor | None, Tensor]:
        x = x.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        total = None if branch is None else torch.empty_like(x)
        added = None if branch is None else branch.contiguous()
        out, normal = (x.new_empty(x.shape, dtype=dtype) for _ in range(2))
        inverse = x.new_empty(rows)
        call("norm_forward", dtype, x, added, weight, bias, total, out, normal, inverse, rows, width, epsilon)
        ctx.save_for_backward(normal, weight, inverse)
        return total, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor | None, grad: Tensor) -> tuple[Tensor | None, ...]:
        normal, weight, inverse = ctx.saved_tensors
        besides = None if grad_total is None else grad_total.contiguous()
        found = torch.empty_like(normal, dtype=torch.float32)
        needs_branch = ctx.needs_input_grad[1]
        # In fp32 one gradient serves both.
        narrow = torch.empty_like(normal) if needs_branch and normal.dtype != torch.float32 else None
        sizes = len(inverse), normal.shape[-1]
        call("norm_backward", normal.dtype, grad.contiguous(), besides, normal, weight, inverse, found, narrow, *sizes)
        grad_branch = found if needs_branch and narrow is None else narrow
        return found, grad_branch, None, None, None, None


def replace_rows(block: nn.Module, norms: Collection[str]) -> None:
    """Put Gelu in place of every exact nn.GELU below ``block``, FrozenNorm in place of its children ``norms``."""
    for name in norms:
        norm = getattr(block, name, None)
        if isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None:
            setattr(block, name, FrozenNorm(norm))
    for parent in block.modules():
        for name, child in parent.named_children():
            if type(child) is nn.GELU and child.approximate == "none":
                # What another module in these hands on nobody else reads.
                is_mlp = type(parent) is loaded("timm.layers", "Mlp")
                within = is_mlp or (type(parent) is nn.Sequential and parent[0] is not child)
                setattr(parent, name, Gelu(alone=within))


def replace_prelu(net: nn.Module) -> None:
    """Let every PReLU of a network be ``PRelu`` that has one slope for all channels."""
    for part in net.modules():
        if type(part) is nn.PReLU and part.num_parameters == 1:
            part.__class__ = PRelu
