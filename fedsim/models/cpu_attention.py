"""Softmax attention for training on a CPU, with its own backward pass.

PyTorch's fused kernel spends most of its time in the backward pass on a CPU, and a batched product with its second
factor transposed runs at a third of the speed of one without (benchmarks/LOG.md). Here every second factor is
laid out as the product wants it, and the images go through in groups whose probabilities stay in the cache.

Shapes: N images, T tokens, H heads, C width of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Probabilities of one group of images: 1 MB in fp32, the second-level cache of a current core.
GROUP_ELEMENTS = 2**18


class CpuAttention(torch.autograd.Function):
    """softmax(q k' / sqrt(C)) v for projections (N, T, 3, H, C), q before k before v; returns (N, T, H, C).

    ``mask`` bool (N, 1, 1, T) or None: tokens where it is false are attended to by none.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, mask: Tensor | None) -> Tensor:
        """Keep the probabilities (N H, T, T); the layouts of q, k and v are cheaper to make again than to keep."""
        num_images, num_tokens, _, num_heads, width = projected.shape
        out = projected.new_empty(num_images, num_tokens, num_heads, width)
        kept = []
        for images in groups(num_images, num_heads * num_tokens**2):
            q, k, v = projected[images].unbind(2)
            scores = torch.bmm(by_head(q) * width**-0.5, by_head_transposed(k))
            if mask is not None:
                scores.unflatten(0, (-1, num_heads)).masked_fill_(~mask[images], -torch.inf)
            probabilities = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(
                projected.dtype
            )
            by_token(torch.bmm(probabilities, by_head(v)), out[images])
            kept.append(probabilities)
        ctx.save_for_backward(projected, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient with respect to the projections; where the mask is false the probabilities are zero."""
        projected, *kept = ctx.saved_tensors
        num_images, num_tokens, _, num_heads, width = projected.shape
        result = torch.empty_like(projected)
        for images, probabilities in zip(groups(num_images, num_heads * num_tokens**2), kept, strict=True):
            q, k, v = projected[images].unbind(2)
            grad_out = by_head(grad[images])
            grad_q, grad_k, grad_v = result[images].unbind(2)
            by_token(torch.bmm(probabilities.mT, grad_out), grad_v)
            grad_probabilities = torch.bmm(grad_out, by_head_transposed(v))
            grad_scores = softmax_backward(grad_probabilities, probabilities).mul_(width**-0.5)
            by_token(torch.bmm(grad_scores, by_head(k)), grad_q)
            by_token(torch.bmm(grad_scores.mT, by_head(q)), grad_k)
        return result, None


def softmax_backward(grad: Tensor, probabilities: Tensor) -> Tensor:
    """Return the gradient of what the probabilities (..., T) are the softmax of, in their type."""
    dtype = probabilities.dtype
    # Rows shorter than a vector of 16-bit numbers are taken one number at a time, nine times slower than in fp32.
    if dtype == torch.bfloat16 and probabilities.shape[-1] < 32:
        grad, probabilities = grad.float(), probabilities.float()
    return torch._softmax_backward_data(grad, probabilities, -1, probabilities.dtype).to(dtype)


def groups(num_images: int, elements_per_image: int) -> list[slice]:
    """Cut the images into slices of at most GROUP_ELEMENTS, of one image at least."""
    size = max(1, GROUP_ELEMENTS // elements_per_image)
    return [slice(start, start + size) for start in range(0, num_images, size)]


def by_head(values: Tensor) -> Tensor:
    """(N, T, H, C) to (N H, T, C), contiguous."""
    return values.transpose(1, 2).flatten(0, 1)


def by_head_transposed(values: Tensor) -> Tensor:
    """(N, T, H, C) to (N H, C, T), contiguous."""
    return values.permute(0, 2, 3, 1).flatten(0, 1).contiguous()


def by_token(values: Tensor, out: Tensor) -> None:
    """Write (N H, T, C) to ``out`` (N, T, H, C)."""
    out.copy_(values.unflatten(0, (len(out), -1)).transpose(1, 2))
