"""LoRA on a convolution, for one client or for a stacked block of clients.

In peft's form: A is a convolution to R channels with the layer's kernel, stride and padding, B one of 1 x 1 behind it.
Both are held as matrices, so that a method multiplies them as those of a linear layer: A (R, D) with D = C * kernel,
B (O, R). Where the layer has G groups A sees all channels, as peft's does, and B has the layer's groups: G factors of
rank R / G each, held as G slices of the output.

Shapes: K clients in a block, B images per client, N = K B, C input channels, O output channels of a group, L pixels of
the output, R rank of a group, D = C * kernel height * kernel width.
Source: Hu et al., LoRA, ICLR 2022, equation 3; peft 0.21, ``tuners/lora/layer.py``, ``_ConvNd``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.config.words import LoraConfig
from fedsim.errors import UserError
from fedsim.models.lora import LowRank


class LoRAConv2d(LowRank):
    """A frozen convolution plus scaling * (shift + B A)."""

    def __init__(self, base: nn.Conv2d, scaling: float) -> None:
        super().__init__(range(base.groups), scaling)
        self.base = base
        self.slice_width = base.out_channels // base.groups
        self.kernel = (base.in_channels, *base.kernel_size)
        self.input_width = self.kernel[0] * self.kernel[1] * self.kernel[2]

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for a module that looks at its type."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base.bias

    def kernels(self, a_GRD: Tensor, b_GOR: Tensor) -> tuple[Tensor, Tensor]:
        """Return factors without a client axis as the kernels of peft's two convolutions."""
        return a_GRD.flatten(0, 1).unflatten(1, self.kernel), b_GOR.flatten(0, 1)[..., None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, height, width) to (N, G * O, ...); images of one client are adjacent."""
        assert self.lora_a is not None, "forward before bind"
        assert self.lora_b is not None, "forward before bind"
        a, b = (factor if factor.dim() == 4 else factor[None] for factor in (self.lora_a, self.lora_b))
        num_clients = max(len(a), len(b))
        out = self._frozen(x)
        groups, rank, pixels = b.shape[1], b.shape[3], out.shape[-2] * out.shape[-1]
        hidden_KBGRL = self._reduced(x, a).reshape(num_clients, len(x) // num_clients, groups, rank, pixels)
        scale = self._scaling
        b = b * (scale.view(-1, 1, 1, 1) if isinstance(scale, Tensor) else scale)
        added: Tensor = torch.matmul(b[:, None], hidden_KBGRL)
        return out + added.reshape(out.shape)

    def _frozen(self, x: Tensor) -> Tensor:
        if not self._is_shifted:
            out: Tensor = self.base(x)
            return out
        if (0, 0) not in self._shifted:
            assert self._shift is not None, "it is shifted"
            weight = self.base.weight.detach()
            self._shifted[0, 0] = weight + self.scaling * self._shift.view(weight.shape)
        base = self.base
        return F.conv2d(x, self._shifted[0, 0], base.bias, base.stride, base.padding)

    def _reduced(self, x: Tensor, a: Tensor) -> Tensor:
        """The R values of every group and pixel, (N, G * R, ...) or (N, G * R, L), each client's own."""
        base = self.base
        if base.kernel_size == (1, 1) and base.padding == (0, 0):
            x_KBCL = x[:, :, :: base.stride[0], :: base.stride[1]].unflatten(0, (len(a), -1)).flatten(3)
            return torch.matmul(a.flatten(1, 2)[:, None], x_KBCL).flatten(0, 1)
        weight_KRCkk = a.reshape(len(a), -1, *self.kernel)
        # One after the other is up to twice as quick as one convolution of K groups, and more than unfolding; only for
        # dozens of clients with few pixels it is a quarter slower (benchmarks/LOG.md).
        parts = zip(x.chunk(len(a)), weight_KRCkk, strict=True)
        return torch.cat([F.conv2d(own, weight, None, base.stride, base.padding) for own, weight in parts])


def check_conv(conv: nn.Conv2d, path: str, config: LoraConfig) -> None:
    """UserError for a convolution that peft does not adapt, or not as this program would."""
    where = "model.lora.target"
    if conv.groups > 1 and config.r % conv.groups:
        found = f"{config.r} for {path}, a convolution of {conv.groups} groups"
        raise UserError("model.lora.r", found, f"a multiple of {conv.groups}, or a model.lora.target without it")
    if conv.groups > 1 and config.ranks is not None:
        raise UserError("model.lora.ranks", f"ranks for {path}, a convolution of groups", "null, or no such target")
    if max(conv.dilation) > 1 or conv.padding_mode != "zeros":
        odd = f"dilation {conv.dilation}" if max(conv.dilation) > 1 else f"padding_mode {conv.padding_mode}"
        raise UserError(where, f"{path}, a convolution with {odd}", "others: peft's factors have none")
    if config.use_dora:
        raise UserError("model.lora.use_dora", f"true with the convolution {path}", "false, or linear layers alone")
    if config.init_lora_weights not in (True, "gaussian"):
        found = f"{config.init_lora_weights} with the convolution {path}"
        raise UserError("model.lora.init_lora_weights", found, "true or gaussian, or linear layers alone")
