"""A frozen layer with low-rank factors, with PyTorch's operators.

Shapes: K clients in a block, G adapted slices of the layer's output, R rank, D input width, O width of one slice, M
rows per client, S slices of the output.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedsim.kernels.examples import Keep, PlainProducts
from fedsim.kernels.frozen import FrozenProduct


class LowRankLinear(torch.autograd.Function):
    """x W' + bias, plus s x A' B' on the adapted slices of the output; W and bias are frozen.

    x (K, M, D), ``product`` with W (S * O, D) and bias, A (K or 1, G, R, D), B (K or 1, G, O, R), ``targets``: the
    slices, of S, that the G factors adapt, s one number or each client's own, (K,) or (); returns (K, M, S * O).
    Written by hand because autograd copies the strided slices of the output several times, which costs more than the
    products (benchmarks/LOG.md). ``keep``: given the examples' products in place of gradients of A and B, which are
    then None.
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
        num_clients, num_rows, _ = x.shape
        scaling = scaling.view(-1, 1, 1) if isinstance(scaling, Tensor) else scaling
        out = product.forward(x.flatten(0, 1)).view(num_clients, num_rows, -1, b.shape[2])
        a_all = a.flatten(1, 2).expand(num_clients, -1, -1)
        hidden = torch.bmm(x, a_all.mT).mul_(scaling)
        for place, target in enumerate(targets):
            b_place = b[:, place].expand(num_clients, -1, -1)
            out[:, :, target].baddbmm_(hidden.unflatten(2, (len(targets), -1))[:, :, place], b_place.mT)
        ctx.save_for_backward(x, a, b, hidden)
        ctx.product, ctx.targets, ctx.scaling, ctx.keep = product, targets, scaling, keep
        return out.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, A and B; the frozen weights have none."""
        x, a, b, hidden = ctx.saved_tensors
        needs_x, _, needs_a, needs_b, *_ = ctx.needs_input_grad
        num_clients = len(x)
        num_slices = grad.shape[2] // b.shape[2]
        # What reaches the R hidden values of every adapted slice, (K, M, G * R). One product with the factors on the
        # diagonal of a larger one is quicker than one product for each slice of the gradient.
        diagonal = b.new_zeros(len(b), num_slices, b.shape[2], len(ctx.targets), b.shape[3])
        for place, target in enumerate(ctx.targets):
            diagonal[:, target, :, place] = b[:, place]
        inner = torch.bmm(grad, diagonal.flatten(3, 4).flatten(1, 2).expand(num_clients, -1, -1)).mul_(ctx.scaling)
        grad_x = grad_a = grad_b = None
        if needs_x:
            a_all = a.flatten(1, 2).expand(num_clients, -1, -1)
            grad_x = ctx.product.backward(grad.flatten(0, 1)).view_as(x).baddbmm_(inner, a_all)
        if ctx.keep is not None:
            sides = x.detach(), inner, hidden, grad
            ctx.keep(PlainProducts(*sides, ctx.targets, ctx.keep.sizes, b.shape[2], needs_a, needs_b))
            return grad_x, *[None] * 6
        if needs_a:
            grad_a = torch.bmm(inner.mT, x).view_as(a)
        if needs_b:
            # One product over all slices is quicker than one for each; only the matching pairs are kept.
            pairs = torch.bmm(hidden.mT, grad).unflatten(2, (num_slices, -1)).unflatten(1, (len(ctx.targets), -1))
            grad_b = torch.stack([pairs[:, place, :, target].mT for place, target in enumerate(ctx.targets)], 1)
        return grad_x, None, grad_a, grad_b, None, None, None
