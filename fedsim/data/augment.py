"""Random changes of training images, a batch at a time, every image with its own draw.

N images, C channels, H rows, W columns (H = W). Values are floats in [0, 1], before normalisation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

CROP_SHARE = 8  # an image moves by up to H/8
COLOUR_RANGE = 0.2  # brightness and contrast are scaled by 0.8 to 1.2


def augment(images: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """Return new images (N, C, H, W) with the named changes, in that order; the input is left as it is.

    ``names``: flip, rotate90, crop, color. The draws come from ``generator``, which is on the CPU whatever
    the device of the images, so every device sees the same draws.
    """
    for name in names:
        images = AUGMENTATIONS[name](images, generator)
    return images


def _flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror left and right, with probability 1/2."""
    mirrored = _draw(images, generator) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def _rotate90(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn by 0, 90, 180 or 270 degrees, each with probability 1/4."""
    turns = (_draw(images, generator) * 4).long()
    turned = torch.where(turns % 2 == 1, images.rot90(1, (2, 3)), images)
    return torch.where(turns >= 2, turned.rot90(2, (2, 3)), turned)


def _crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move by up to H/8 pixels along both axes; the border is repeated where nothing is left to show."""
    num_images, num_channels, height, width = images.shape
    reach = height // CROP_SHARE
    down, right = ((_draw(images, generator) * (2 * reach + 1)).long() - reach for _ in range(2))
    device = images.device
    rows = (torch.arange(height, device=device).view(1, 1, -1, 1) + down).clamp(0, height - 1)
    columns = (torch.arange(width, device=device).view(1, 1, 1, -1) + right).clamp(0, width - 1)
    image = torch.arange(num_images, device=device).view(-1, 1, 1, 1)
    channel = torch.arange(num_channels, device=device).view(1, -1, 1, 1)
    return images[image, channel, rows, columns]


def _color(images: Tensor, generator: torch.Generator) -> Tensor:
    """Scale the brightness, then the contrast around the image's mean, each by 0.8 to 1.2."""
    brightness, contrast = (1 + COLOUR_RANGE * (2 * _draw(images, generator) - 1) for _ in range(2))
    bright = images * brightness
    mean = bright.mean((1, 2, 3), keepdim=True)
    return ((bright - mean) * contrast + mean).clamp(0, 1)


AUGMENTATIONS = {"flip": _flip, "rotate90": _rotate90, "crop": _crop, "color": _color}


def _draw(images: Tensor, generator: torch.Generator) -> Tensor:
    """One uniform number in [0, 1) per image, as (N, 1, 1, 1) on the device of the images."""
    return torch.rand(len(images), 1, 1, 1, generator=generator).to(images.device)
