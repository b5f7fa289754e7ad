"""Convolutions of many channels over few pixels on a CPU, as a product for every place of the kernel.

There oneDNN's way back to the weights takes up to three times as long as products (benchmarks/LOG.md), and where maps
are as small as 2 x 2 most places of a kernel lie beyond most pixels, which products leave out.

Shapes: N images, C and O channels in and out, H, W and P, Q pixels of the sides before and after, I x J places of the
kernel.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Products pay from so many weights of a place for every pixel of the batch on, measured in fp32 and bf16.
WEIGHTS_PER_PIXEL = 128
# On the way forth and to the inputs oneDNN is as good but on the smallest maps.
SMALLEST_MAP = 4


class Sizes(NamedTuple):
    """A convolution's stride and padding along both axes."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]


def suits(x: Tensor, weight: Tensor, sizes: Sizes) -> bool:
    """Whether products take less time than oneDNN's convolution."""
    num_images, outputs, height, width = _shape(x, weight, sizes)
    return WEIGHTS_PER_PIXEL * num_images * height * width <= outputs * weight.shape[1]


class Products(torch.autograd.Function):
    """The convolution (N, O, P, Q) of x (N, C, H, W) with weights (O, C, I, J)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, sizes: Sizes) -> Tensor:
        shape = _shape(x, weight, sizes)
        if shape[2] * shape[3] > SMALLEST_MAP:
            return F.conv2d(x, weight, None, *sizes)
        rows, by_place = x.permute(0, 2, 3, 1), weight.permute(2, 3, 1, 0)
        total = x.new_zeros(shape[0], *shape[2:], shape[1], dtype=_sum_type(x))
        for place, before, after in _places(x, shape, weight, sizes):
            total[after] += _product(rows[before], by_place[place])
        return total.permute(0, 3, 1, 2).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Sizes], _output: Tensor) -> None:
        x, weight, ctx.sizes = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, _ = ctx.needs_input_grad
        return (
            _to_input(grad, x, weight, ctx.sizes) if wants_x else None,
            _to_weight(grad, x, weight, ctx.sizes) if wants_weight else None,
            None,
        )

    @staticmethod
    def vmap(
        _info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, sizes: Sizes
    ) -> tuple[Tensor, int]:
        """Several clients have PyTorch's convolution with a group for each."""
        plain: Tensor = torch.vmap(lambda own, weight: F.conv2d(own, weight, None, *sizes), in_dims[:2])(x, weight)
        return plain, 0


def _to_input(grad: Tensor, x: Tensor, weight: Tensor, sizes: Sizes) -> Tensor:
    if grad.shape[2] * grad.shape[3] > SMALLEST_MAP:
        given = (None, sizes.stride, sizes.padding, [1, 1], False, [0, 0], 1, [True, False, False])
        found: Tensor = torch.ops.aten.convolution_backward(grad, x, weight, *given)[0]
        return found
    rows, by_place = grad.permute(0, 2, 3, 1), weight.permute(2, 3, 0, 1)
    total = x.new_zeros(len(x), *x.shape[2:], x.shape[1], dtype=_sum_type(x))
    for place, before, after in _places(x, grad.shape, weight, sizes):
        total[before] += _product(rows[after], by_place[place])
    return total.permute(0, 3, 1, 2).to(x.dtype)


def _to_weight(grad: Tensor, x: Tensor, weight: Tensor, sizes: Sizes) -> Tensor:
    """The gradient (O, C, I, J) of the weights, its input channels last in memory."""
    outputs, inputs, *kernel = weight.shape
    found = weight.new_empty(outputs, *kernel, inputs)
    left_out = set(product(range(kernel[0]), range(kernel[1])))
    grads, rows = grad.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
    for place, before, after in _places(x, grad.shape, weight, sizes):
        left_out.remove(place)
        torch.mm(grads[after].reshape(-1, outputs).T, rows[before].reshape(-1, inputs), out=found[:, *place])
    for place in left_out:
        found[:, *place] = 0
    return found.permute(0, 3, 1, 2)


def _sum_type(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    """Rows (N, P, Q, A) times a place's weights (A, B)."""
    return (rows.reshape(-1, weight.shape[0]) @ weight).view(*rows.shape[:3], weight.shape[1])


Pixels = tuple[slice, slice, slice]


def _places(
    x: Tensor, output: torch.Size, weight: Tensor, sizes: Sizes
) -> Iterator[tuple[tuple[int, int], Pixels, Pixels]]:
    """Each place of the kernel that meets pixels, with those it meets in the input, and where they go in the output."""
    of_rows, of_columns = (
        _along(x.shape[axis], output[axis], weight.shape[axis], sizes.stride[axis - 2], sizes.padding[axis - 2])
        for axis in (2, 3)
    )
    for row, *rows in of_rows:
        for column, *columns in of_columns:
            before, after = ((slice(None), *pair) for pair in zip(rows, columns, strict=True))
            yield (row, column), before, after


def _along(size: int, size_after: int, kernel: int, stride: int, padding: int) -> list[tuple[int, slice, slice]]:
    """The same along an axis: output p meets input p * stride + place - padding at a place of the kernel."""
    found = []
    for place in range(kernel):
        first = max(0, -((place - padding) // stride))
        end = min(size_after, (size - 1 + padding - place) // stride + 1)
        if first < end:
            start = first * stride + place - padding
            found.append((place, slice(start, start + (end - first - 1) * stride + 1, stride), slice(first, end)))
    return found


def _shape(x: Tensor, weight: Tensor, sizes: Sizes) -> torch.Size:
    """The output's shape (N, O, P, Q)."""
    sides = zip(x.shape[2:], weight.shape[2:], *sizes, strict=True)
    after = [(size + 2 * padding - kernel) // stride + 1 for size, kernel, stride, padding in sides]
    return torch.Size([len(x), len(weight), *after])
