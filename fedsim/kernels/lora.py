"""A frozen layer with low-rank factors on a CPU, compiled: fedsim/kernels/lora.cpp.

Shapes: K clients in a block, G adapted slices of the layer's output, R rank, D input width, O width of one slice,
M rows per client, or all rows of clients that have unequal numbers of images, S slices of the output.
"""

from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedsim.kernels.build import available, call
from fedsim.kernels.examples import CompiledProducts, Keep
from fedsim.kernels.frozen import FrozenProduct


def suits(product: FrozenProduct, slice_width: int) -> bool:
    """Whether ``CompiledLowRank`` takes this product."""
    weight = product.weight
    even = weight.dtype == torch.float32 or (weight.shape[1] % 2 == 0 and slice_width % 2 == 0)
    return weight.device.type == "cpu" and even and available(weight.dtype)


class CompiledLowRank(torch.autograd.Function):
    """x W' + bias, plus s x A' B' on the adapted slices of the output; W and bias are frozen.

    x (K, M, D), ``product`` with W (S * O, D) and bias; A (K or 1, G, R, D) and B (K or 1, G, O, R) in fp32;
    ``targets``: the slices, of S, that the G factors adapt; s is one number or each client's own, (K,) or (); returns
    (K, M, S * O). ``keep``: given the examples' products in place of gradients of A and B, which are then None; x is
    then (1, M, D), the clients' images in order.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        product: FrozenProduct,
        a: Tensor,
        b: Tensor,
        targets: tuple[int, ...],
        scaling: float | Tensor,
        keep: Keep | None = None,
    ) -> Tensor:
        """Keep the hidden values (K, M, G, R), with the rank rounded up to an even number."""
        x, a, b = x.contiguous(), a.contiguous(), b.contiguous()
        out = product.forward(x.flatten(0, 1))
        hidden = x.new_empty(*x.shape[:2], b.shape[1], b.shape[3] + b.shape[3] % 2)
        places = _places(targets)
        starts = _starts(*x.shape[:2]) if keep is None else keep.starts(x.shape[1])
        scales = torch.as_tensor(scaling, dtype=torch.float32).expand(len(starts) - 1).contiguous()
        call("lora_forward", x.dtype, x, a, b, places, hidden, out, *_sizes(starts, x, out, a, b), scales)
        ctx.save_for_backward(x, a, b, hidden, places, starts)
        ctx.product, ctx.scales, ctx.keep = product, scales, keep
        return out.view(*x.shape[:2], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, A and B; the frozen weights have none."""
        x, a, b, hidden, places, starts = ctx.saved_tensors
        needs_x, _, needs_a, needs_b, *_ = ctx.needs_input_grad
        rows = grad.contiguous().flatten(0, 1)
        grad_x = ctx.product.backward(rows).view_as(x) if needs_x else None
        inner, sizes = torch.empty_like(hidden), _sizes(starts, x, rows, a, b)
        run = partial(call, "lora_backward", x.dtype, rows, x, a, b, places, hidden, inner, grad_x)
        if ctx.keep is not None:
            run(None, None, *sizes, ctx.scales)
            _, _, width, rank = b.shape
            sides = x.detach()[0], inner, hidden, rows
            ctx.keep(CompiledProducts(*sides, places, ctx.keep.sizes, width, rank, needs_a, needs_b))
            return grad_x, *[None] * 6
        # One gradient per client, also of a factor that they share: its own is their sum.
        grad_a = a.new_empty(len(x), *a.shape[1:]) if needs_a else None
        grad_b = b.new_empty(len(x), *b.shape[1:]) if needs_b else None
        run(grad_a, grad_b, *sizes, ctx.scales)
        sums = (part if part is None else part.sum_to_size(like.shape) for part, like in ((grad_a, a), (grad_b, b)))
        return grad_x, None, *sums, None, None, None


@lru_cache
def _places(targets: tuple[int, ...]) -> Tensor:
    return torch.tensor(targets)


@lru_cache
def _starts(num_clients: int, rows: int) -> Tensor:
    """Every client's first row, int64 (K + 1,), where all have as many."""
    return torch.arange(num_clients + 1) * rows


def _sizes(starts: Tensor, x: Tensor, out: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor | int, ...]:
    """The clients' first rows, K, D, O, S, G and R, and of how many clients A and B are."""
    _, adapted, slice_width, rank = b.shape
    slices = out.shape[1] // slice_width
    return starts, len(starts) - 1, x.shape[2], slice_width, slices, adapted, rank, len(a), len(b)
