"""How a network's convolutions are computed on a CPU: by Winograd's filtering, by products, or by oneDNN."""

import torch
from torch import Tensor, nn

from fedsim.kernels import winograd
from fedsim.models.networks import few_pixels


class QuickConv2d(nn.Conv2d):
    """``nn.Conv2d`` without groups and dilation, padded with zeros; how it is computed follows from the shapes."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert not isinstance(self.padding, str), "replace_convolutions leaves those out"
        sizes = few_pixels.Sizes(self.stride, self.padding)
        over_few = few_pixels.suits(input, weight, sizes)
        filtered = not over_few and winograd.suits(input, weight, *sizes)
        if not over_few and not filtered:
            plain: Tensor = super()._conv_forward(input, weight, bias)
            return plain
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        found: Tensor
        if filtered:
            found = winograd.Winograd.apply(input, weight, self.padding[0])
        else:
            found = few_pixels.Products.apply(input, weight, sizes)
        return found if bias is None else found + bias[:, None, None]


def replace_convolutions(net: nn.Module) -> None:
    """Let the convolutions of a network be ``QuickConv2d`` where they can."""
    for part in net.modules():
        plain = type(part) is nn.Conv2d and part.groups == 1 and part.dilation == (1, 1)
        if plain and part.padding_mode == "zeros" and not isinstance(part.padding, str):
            part.__class__ = QuickConv2d
