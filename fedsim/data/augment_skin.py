"""The random changes of PRR-FL's dermoscopic images, a batch at a time (there: albumentations 0.5, image by image).

N images, C channels, H rows, W columns (H = W), floats in [0, 1]. Every draw is (N, 1, 1, 1), uniform in [0, 1).
Two small differences: rotation is around the image's true centre, not half a pixel off, and nothing is rounded to
8 bits in between.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BRIGHTNESS_RANGE, BRIGHTNESS_SHARE = 0.2, 0.75
BLUR_OR_NOISE_SHARE = 0.7
# What is odd about the release's Gaussian sizes (5 twice as often as 3) is albumentations rounding 4 up.
MEDIAN_SIDES, GAUSSIAN_SIDES = (3, 5), (3, 5, 5)
BINOMIAL = {3: (1, 2, 1), 5: (1, 4, 6, 4, 1)}
NOISE_VARIANCE = (5.0, 30.0)  # of values in 0..255
SHIFT_RANGE, SCALE_RANGE, ANGLE_RANGE, MOVE_SHARE = 0.1, 0.1, math.radians(15), 0.85


def brightness(images: Tensor, draw_whether: Tensor, draw_amount: Tensor) -> Tensor:
    """Add up to 0.2 to all values or take it away, with probability 0.75."""
    amount = BRIGHTNESS_RANGE * (2 * draw_amount - 1)
    return torch.where(draw_whether < BRIGHTNESS_SHARE, (images + amount).clamp(0, 1), images)


def blur_or_noise(images: Tensor, draw_kind: Tensor, draw_amount: Tensor, draw_seed: Tensor) -> Tensor:
    """With probability 0.7 one of three: a median filter, a Gaussian filter (3 or 5 pixels wide), Gaussian noise."""
    kind = (draw_kind / BLUR_OR_NOISE_SHARE * 3).long().flatten()
    result = images.clone()
    for number, sides, blur in ((0, MEDIAN_SIDES, _median), (1, GAUSSIAN_SIDES, _gaussian)):
        choice = (draw_amount.flatten() * len(sides)).long()
        width = torch.tensor(sides, device=images.device)[choice]
        for side in BINOMIAL:
            # A filter costs far more than the other changes, so only those images pass it that drew it.
            rows = ((kind == number) & (width == side)).nonzero().flatten()
            result[rows] = blur(images[rows], side)
    low, high = NOISE_VARIANCE
    rows = (kind == 2).nonzero().flatten()
    deviation = (low + (high - low) * draw_amount[rows]).sqrt() / 255
    noise = normal_noise(draw_seed[rows], images.shape[1:]).to(images.dtype)
    result[rows] = (images[rows] + deviation * noise).clamp(0, 1)
    return result


def shift_scale_rotate(
    images: Tensor,
    draw_whether: Tensor,
    draw_angle: Tensor,
    draw_scale: Tensor,
    draw_down: Tensor,
    draw_right: Tensor,
    mode: str = "bilinear",
) -> Tensor:
    """With probability 0.85 turn by up to 15 degrees, scale by 0.9 to 1.1 and move by up to a tenth; black outside.

    ``mode``: how values between pixels are found, in the words of ``grid_sample``.
    """
    angle, size, down, right = (
        (2 * draw.flatten() - 1) * reach
        for draw, reach in (
            (draw_angle, ANGLE_RANGE),
            (draw_scale, SCALE_RANGE),
            (draw_down, SHIFT_RANGE),
            (draw_right, SHIFT_RANGE),
        )
    )
    # Where a pixel of the result comes from, in coordinates that run from -1 to 1 over the image.
    cos, sin, right, down = angle.cos() / (1 + size), angle.sin() / (1 + size), 2 * right, 2 * down
    from_x = torch.stack([cos, -sin, sin * down - cos * right], 1)
    from_y = torch.stack([sin, cos, -sin * right - cos * down], 1)
    grid = F.affine_grid(torch.stack([from_x, from_y], 1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)
    return torch.where(draw_whether < MOVE_SHARE, moved, images)


def normal_noise(draws: Tensor, shape: torch.Size) -> Tensor:
    """Return standard normal numbers (N, *shape), float64; an image's follow from its draw alone.

    Counters through a hash (C. Wellons' lowbias32), then Box and Muller: a number per pixel need not be drawn and
    carried along beforehand.
    """
    seeds = _hash((draws.flatten().double() * 2**24).long())
    counters = torch.arange(2 * math.prod(shape), device=draws.device)
    uniform = (_hash(seeds[:, None] + counters).double() + 0.5) / 2**32
    radius, angle = uniform.chunk(2, dim=1)
    normal = (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()
    return normal.reshape(-1, *shape)


def _hash(values: Tensor) -> Tensor:
    """Mix 32-bit whole numbers, kept in int64; products that overflow keep their low bits."""
    mask = 2**32 - 1
    values = values & mask
    values = ((values ^ (values >> 16)) * 0x7FEB352D) & mask
    values = ((values ^ (values >> 15)) * 0x846CA68B) & mask
    return values ^ (values >> 16)


def _median(images: Tensor, side: int) -> Tensor:
    reach = side // 2
    padded = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    return padded.unfold(2, side, 1).unfold(3, side, 1).flatten(4).median(4).values


def _gaussian(images: Tensor, side: int) -> Tensor:
    reach = side // 2
    line = torch.tensor(BINOMIAL[side], dtype=images.dtype, device=images.device)
    line = line / line.sum()
    padded = F.pad(images, (reach, reach, reach, reach), mode="reflect").flatten(0, 1)[:, None]
    blurred = F.conv2d(F.conv2d(padded, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))
    return blurred.reshape(images.shape)
