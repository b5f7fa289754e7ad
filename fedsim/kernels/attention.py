"""Softmax attention on a CPU with its own backward pass, compiled: fedsim/kernels/attention.cpp.

Shapes: N images, Q queries, T tokens, H heads, C width of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedsim.kernels.build import available, call


def suits(projected: Tensor, width: int) -> bool:
    """Whether ``CompiledAttention`` takes heads of this width in the type and on the device of ``projected``."""
    even = width % 2 == 0 or projected.dtype == torch.float32
    # vmap, which trains whole networks in blocks, hands over tensors without an address.
    has_address = not torch._C._functorch.is_functorch_wrapped_tensor(projected)
    return projected.device.type == "cpu" and even and has_address and available(projected.dtype)


class CompiledAttention(torch.autograd.Function):
    """softmax(q k' / sqrt(C)) v, (N, Q, H, C).

    ``queries`` (N, Q, H, C) with ``projected`` (N, T, 2, H, C), k before v; or None with (N, T, 3, H, C), q first.
    ``mask`` bool (N, 1, 1, T) or None: tokens where it is false are attended to by none.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor | None, projected: Tensor, mask: Tensor | None) -> Tensor:
        """Keep two numbers for each query, (N, H, Q, 2), from which the way back makes the probabilities again."""
        projected, queries = projected.contiguous(), None if queries is None else queries.contiguous()
        q, k, v = _parts(queries, projected)
        mask, out = None if mask is None else mask.contiguous(), q.new_empty(q.shape)
        kept = q.new_empty(len(q), q.shape[2], q.shape[1], 2, dtype=torch.float32)
        call("attention_forward", q.dtype, q, k, v, mask, out, kept, *_sizes(q, k))
        ctx.save_for_backward(queries, projected, mask, kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        """Return the gradients of the projections; where the mask is false the probabilities are zero."""
        queries, projected, mask, kept = ctx.saved_tensors
        grad_queries = None if queries is None else torch.empty_like(queries)
        grad_projected = torch.empty_like(projected)
        q, k, v = _parts(queries, projected)
        grads = _parts(grad_queries, grad_projected)
        call("attention_backward", q.dtype, grad.contiguous(), q, k, v, mask, kept, *grads, *_sizes(q, k))
        return grad_queries, grad_projected, None


def _parts(queries: Tensor | None, projected: Tensor) -> tuple[Tensor, ...]:
    parts = projected.unbind(2)
    return parts if queries is None else (queries, *parts)


def _sizes(q: Tensor, k: Tensor) -> tuple[int, ...]:
    num_images, num_queries, num_heads, width = q.shape
    return num_images, num_heads, num_queries, k.shape[1], width, *q.stride()[:2], *k.stride()[:2]
