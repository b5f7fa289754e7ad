"""Random changes of training images, a batch at a time, every image with its own draw.

N images, C channels, H rows, W columns (H = W). Values are floats in [0, 1], before normalisation.
The random numbers come from outside, since each client of a block has a stream of its own.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fedsim.data.augment_skin import blur_or_noise, brightness, shift_scale_rotate

CROP_SHARE = 8  # an image moves by up to H/8
COLOUR_RANGE = 0.2  # brightness and contrast are scaled by 0.8 to 1.2
NUM_DRAWS = 17  # random numbers per image, enough for all changes together


def augment(images: Tensor, names: Sequence[str], draws: Tensor) -> Tensor:
    """Return new images (N, C, H, W) with the named changes, in that order; the input is left as it is.

    ``draws`` (N, NUM_DRAWS): uniform numbers in [0, 1); each change reads columns of its own, so what one
    change draws does not depend on which others are on.
    """
    columns = _columns(draws)
    for name in names:
        change, own = AUGMENTATIONS[name]
        images = change(images, *columns[own])
    return images


def augment_masks(masks: Tensor, names: Sequence[str], draws: Tensor) -> Tensor:
    """Return masks (N, H, W) moved as ``augment`` moves their images with the same ``draws``.

    Every pixel keeps its class or gets that of the nearest one; what comes in from outside is background, 0. Changes
    of intensity leave masks as they are.
    """
    columns, moved = _columns(draws), masks[:, None].float()
    for name in names:
        if name in MOVES:
            moved = MOVES[name](moved, *columns[AUGMENTATIONS[name][1]])
    return moved[:, 0].to(masks.dtype)


def _columns(draws: Tensor) -> list[Tensor]:
    return [draw.view(-1, 1, 1, 1) for draw in draws.unbind(1)]


def _flip(images: Tensor, draw: Tensor) -> Tensor:
    """Mirror left and right, with probability 1/2."""
    return torch.where(draw < 0.5, images.flip(3), images)


def _vertical_flip(images: Tensor, draw: Tensor) -> Tensor:
    """Turn upside down by mirroring, with probability 1/2."""
    return torch.where(draw < 0.5, images.flip(2), images)


def _rotate90(images: Tensor, draw: Tensor) -> Tensor:
    """Turn by 0, 90, 180 or 270 degrees, each with probability 1/4."""
    turns = (draw * 4).long()
    turned = torch.where(turns % 2 == 1, images.rot90(1, (2, 3)), images)
    return torch.where(turns >= 2, turned.rot90(2, (2, 3)), turned)


def _crop(images: Tensor, draw_down: Tensor, draw_right: Tensor) -> Tensor:
    """Move by up to H/8 pixels along both axes; the border is repeated where nothing is left to show."""
    num_images, num_channels, height, width = images.shape
    reach = height // CROP_SHARE
    down, right = ((draw * (2 * reach + 1)).long() - reach for draw in (draw_down, draw_right))
    device = images.device
    rows = (torch.arange(height, device=device).view(1, 1, -1, 1) + down).clamp(0, height - 1)
    columns = (torch.arange(width, device=device).view(1, 1, 1, -1) + right).clamp(0, width - 1)
    image = torch.arange(num_images, device=device).view(-1, 1, 1, 1)
    channel = torch.arange(num_channels, device=device).view(1, -1, 1, 1)
    return images[image, channel, rows, columns]


def _color(images: Tensor, draw_brightness: Tensor, draw_contrast: Tensor) -> Tensor:
    """Scale the brightness, then the contrast around the image's mean, each by 0.8 to 1.2."""
    brightness, contrast = (1 + COLOUR_RANGE * (2 * draw - 1) for draw in (draw_brightness, draw_contrast))
    bright = images * brightness
    mean = bright.mean((1, 2, 3), keepdim=True)
    return ((bright - mean) * contrast + mean).clamp(0, 1)


AUGMENTATIONS: dict[str, tuple[Callable[..., Tensor], slice]] = {
    "flip": (_flip, slice(0, 1)),
    "rotate90": (_rotate90, slice(1, 2)),
    "crop": (_crop, slice(2, 4)),
    "color": (_color, slice(4, 6)),
    "vertical_flip": (_vertical_flip, slice(6, 7)),
    "brightness": (brightness, slice(7, 9)),
    "blur_or_noise": (blur_or_noise, slice(9, 12)),
    "shift_scale_rotate": (shift_scale_rotate, slice(12, 17)),
}


# The changes that move pixels, in the form that masks take.
MOVES: dict[str, Callable[..., Tensor]] = {
    "flip": _flip,
    "rotate90": _rotate90,
    "crop": _crop,
    "vertical_flip": _vertical_flip,
    "shift_scale_rotate": partial(shift_scale_rotate, mode="nearest"),
}
