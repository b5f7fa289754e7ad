"""HarmoFL's amplitude normalisation: all images take on one amplitude spectrum, and each keeps its own phases.

Jiang et al., HarmoFL, AAAI 2022. What a scanner or a stain does to an image shows mostly in the amplitudes of its
spectrum, what is in the image mostly in the phases. This file needs torch and safetensors alone: an exported model that
normalises has a copy of it.

Shapes: B images of a client, C channels, H rows and W columns of an image, V = W // 2 + 1 columns of the half of the
spectrum that determines a real image. Axes may stand in front, such as one for K clients.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

# Below this share of the sum of an image's pixels, which no amplitude exceeds, an amplitude is rounding.
ROUNDING = 1e-7


class AmplitudeNorm(nn.Module):
    """Maps images (..., B, C, H, W) to images of the same shape and type with the target's amplitudes.

    ``amplitude`` (..., C, H, V) is the target: the half of a spectrum as ``torch.fft.rfft2`` gives it, the constant
    part at index 0, 0. In training it follows the mean amplitude of the batch, from the first batch's on, unless
    ``is_fixed``, bool (...), says that it is shared and stays. Evaluation uses it unchanged, and leaves images as
    they are while there is neither a first batch nor a fixed target. A frequency without amplitude has no phase and
    gets none: a blank image stays blank, at the target's mean, whose sign is then +. Both are buffers of the state
    dict; under ``torch.func.functional_call`` they may have a leading axis for clients, each of which then has a
    target of its own. ``config``: has form, momentum and low_freq_fraction, as model.amplitude_norm.
    """

    amplitude: Tensor
    is_fixed: Tensor
    inside: Tensor

    def __init__(self, config: Any, num_channels: int, height: int, width: int) -> None:
        super().__init__()
        is_released = config.form == "released"
        # The released code replaces the constant part alone, and passes its momentum as an integer.
        self.momentum = config.momentum
        fraction = 0.0 if is_released else config.low_freq_fraction
        self.register_buffer("amplitude", torch.zeros(num_channels, height, width // 2 + 1))
        self.register_buffer("is_fixed", torch.tensor(False))
        self.register_buffer("inside", low_frequencies(height, width, fraction), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        num_pixels = images.shape[-2] * images.shape[-1]
        # The constant part goes its own way: it outweighs all else so far that float32 would round that away.
        mean = images.mean((-2, -1), keepdim=True)
        spectrum = torch.fft.rfft2(images - mean)
        size = spectrum.abs()
        size[..., :1, :1] = num_pixels * mean.abs()
        if self.training:
            self._follow(size.mean(-4))

        wanted = self.amplitude.unsqueeze(-4).to(size)
        has_phase = size > ROUNDING * images.abs().sum((-2, -1), keepdim=True)
        spectrum = torch.where(self.inside & has_phase, spectrum.sgn() * wanted, spectrum)
        spectrum[..., 0, 0] = 0
        constant = torch.where(mean < 0, -1, 1) * wanted[..., :1, :1] / num_pixels
        result = torch.fft.irfft2(spectrum, s=images.shape[-2:]) + constant
        has_target = (self.is_fixed | self.amplitude.flatten(-3).any(-1))[..., None, None, None, None]
        return torch.where(has_target, result, images)

    def _follow(self, mean: Tensor) -> None:
        """Move the targets that may move towards the mean amplitude (..., C, H, V) of a batch, in place."""
        is_new = ~self.amplitude.flatten(-3).any(-1)
        rate = torch.where(is_new, 1.0, self.momentum).where(~self.is_fixed, 0.0).to(mean)
        self.amplitude.copy_(self.amplitude.to(mean).lerp(mean, rate[..., None, None, None]))


def low_frequencies(height: int, width: int, fraction: float) -> Tensor:
    """Return which places (H, V) of the half spectrum lie in the square of frequencies -b to b along both axes.

    b = floor(min(H, W) * fraction), both ends included; 0 leaves the constant part alone, and at 1 all are inside.
    """
    bound = max(height, width) if fraction == 1 else int(min(height, width) * fraction)
    rows = torch.arange(height)
    distances = torch.minimum(rows, height - rows)
    return (distances <= bound)[:, None] & (torch.arange(width // 2 + 1) <= bound)


def loaded(folder: str) -> AmplitudeNorm:
    """Return the normalisation that an export has written: its words in a JSON file, its target beside them."""
    words = json.loads(Path(folder, "amplitude_norm.json").read_text("utf-8"))
    norm = AmplitudeNorm(SimpleNamespace(**words["norm"]), 3, words["size"], words["size"])
    norm.load_state_dict(load_file(folder + "/amplitude_norm.safetensors"))
    return norm.eval()
