"""Convolutions of 3 x 3 on a CPU in fp32 with less than half of the multiplications: fedsim/kernels/winograd.cpp.

Shapes: N images, C and O channels in and out, H x W pixels, P x Q after the convolution, S outputs of a strip.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedsim.kernels.build import available, call

LANES = 16
#: Channels, and multiplications of a place of the kernel, from which on it takes less time than oneDNN's.
FEWEST_CHANNELS = 32
FEWEST_PRODUCTS = 2**21
SMALLEST_SIDE = 4
#: G of Lavin and Gray (CVPR 2016) for both axes, (16, 9): what a tile's places take of a kernel's.
_ALONG = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
PLACES_OF_KERNEL = torch.kron(_ALONG, _ALONG)


def suits(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> bool:
    """Whether ``Winograd`` can convolve x (N, C, H, W) with weights (O, C, I, J), and takes less time for it."""
    outputs, channels, *kernel = weight.shape
    if kernel != [3, 3] or stride != (1, 1) or padding[0] != padding[1] or padding[0] > 2:
        return False
    if x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    num_images, sides = len(x), [side + 2 * padding[0] - 2 for side in x.shape[2:]]
    whole = channels % LANES == 0 and outputs % LANES == 0
    large = min(sides) >= SMALLEST_SIDE and min(channels, outputs) >= FEWEST_CHANNELS
    enough = num_images * sides[0] * sides[1] * channels * outputs >= FEWEST_PRODUCTS
    # Without registers of whole vectors it takes four times as long as oneDNN's (benchmarks/LOG.md).
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return whole and large and enough and wide and available(x.dtype)


class Winograd(torch.autograd.Function):
    """The convolution (N, O, P, Q) of x (N, C, H, W) with weights (O, C, 3, 3) and stride 1, channels last."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, padding: int) -> Tensor:
        return convolution(x, weight, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], _output: Tensor) -> None:
        x, weight, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, _ = ctx.needs_input_grad
        to_x = convolution(grad, weight.flip(2, 3).transpose(0, 1), 2 - ctx.padding) if wants_x else None
        return to_x, to_weight(grad, x, weight, ctx.padding) if wants_weight else None, None

    @staticmethod
    def vmap(
        _info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, padding: int
    ) -> tuple[Tensor, int]:
        """Several clients have PyTorch's convolution with a group for each."""
        plain: Tensor = torch.vmap(lambda own, weight: F.conv2d(own, weight, padding=padding), in_dims[:2])(x, weight)
        return plain, 0


def convolution(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The same without a way back."""
    num_images, channels, height, width = x.shape
    outputs, strip = len(weight), _strip(len(weight))
    # (O / S, 9, C, S): the kernel's places in one product each.
    by_place = weight.reshape(outputs // strip, strip, channels, 9).permute(0, 3, 2, 1).contiguous()
    transformed = PLACES_OF_KERNEL @ by_place.flatten(2)
    rows = x.permute(0, 2, 3, 1).contiguous()
    found = x.new_empty(num_images, height + 2 * padding - 2, width + 2 * padding - 2, outputs)
    sizes = num_images, height, width, padding, channels, outputs, strip
    call("winograd_forward", x.dtype, rows, transformed, found, *sizes)
    return found.permute(0, 3, 1, 2)


def to_weight(grad: Tensor, x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The gradient (O, C, 3, 3) of the weights, channels last in memory."""
    num_images, channels, height, width = x.shape
    outputs, strip = len(weight), _strip(len(weight))
    rows, grads = (value.permute(0, 2, 3, 1).contiguous() for value in (x, grad))
    transformed = x.new_empty(outputs // strip, 16, channels * strip)
    sizes = num_images, height, width, padding, channels, outputs, strip
    call("winograd_weights", x.dtype, rows, grads, transformed, *sizes)
    by_place = (PLACES_OF_KERNEL.T @ transformed).view(outputs // strip, 9, channels, strip)
    found = weight.new_empty(outputs // strip, strip, 9, channels)
    found.copy_(by_place.permute(0, 3, 1, 2))
    return found.view(outputs, 3, 3, channels).permute(0, 3, 1, 2)


def _strip(outputs: int) -> int:
    return next(strip for strip in (64, 48, 32, 16) if outputs % strip == 0)
