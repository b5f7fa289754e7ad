"""Masks, the class of every pixel: read, resized without inventing classes, and summed up as a label.

N masks, H and W pixels, C classes; class 0 is the background.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fedsim.data.dataset import Indices, Pixels
from fedsim.data.images import decoded, square
from fedsim.errors import UserError

MASK_FORMATS = ("BMP", "PNG", "TIFF")
#: Of JPEG masks: what is no more than noise of compression, and what is no white.
BLACKEST, WHITEST = 16, 127
MASK_MODES = ("1", "L", "P", "I;16", "I;16B", "I")


def read_foreground(path: Path) -> Pixels:
    """Return the mask of an image file, (H, W): 1 where a pixel's value, such as the number of an object, is not 0.

    Probabilities in grey levels cannot be told from numbered objects; those in floats are refused. So is a palette in
    which number 0 is another colour than black: what shrinks a file puts its colours in any order.
    """
    mask, _ = decoded(path, MASK_FORMATS)
    if mask.mode not in MASK_MODES:
        raise UserError(str(path), f"a mask of mode {mask.mode}", "one channel of whole numbers, 0 for the background")
    if any(colour := (mask.getpalette() or [])[:3]):
        found = f"a palette whose number 0 is the colour {', '.join(map(str, colour))}"
        raise UserError(str(path), found, "black as number 0, for the background, or grey levels")
    foreground: Pixels = (np.asarray(mask) != 0).astype(np.uint8)
    return foreground


def read_white_or_marked(path: Path) -> Pixels:
    """Return the mask of an image file, (H, W), as ``read_foreground``; of a JPEG, 1 where it is white, above 127.

    JPEG blurs: along an edge there are values between black and white, and beside it some near black. UserError for one
    that has something to tell but no white, such as numbered classes.
    """
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        return read_foreground(path)
    mask, _ = decoded(path, ("JPEG",))
    grey = np.asarray(mask.convert("L"))
    if BLACKEST < grey.max(initial=0) <= WHITEST:
        raise UserError(str(path), f"a JPEG mask of values up to {grey.max()}", "black and white, or a lossless format")
    return (grey > WHITEST).astype(np.uint8)


def fitted_mask(mask: Pixels, side: int, fit: str) -> Pixels:
    """Return a mask (H, W) as (side, side), made square as ``images.fitted`` does with its image."""
    return resized_mask(np.asarray(square(Image.fromarray(mask), fit), np.uint8), side, side)


def require_size(path: Path, mask: Sequence[int], image: Sequence[int]) -> None:
    """UserError where the mask at ``path`` has not the size of its image."""
    found, expected = (" x ".join(map(str, size)) for size in (mask, image))
    if found != expected:
        raise UserError(str(path), f"a mask of {found} pixels", f"the size of its image, {expected}")


def resized_mask(mask: Pixels, width: int, height: int) -> Pixels:
    """Return a mask (H, W) as (height, width), each pixel with the class of the nearest one."""
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST), np.uint8)


def main_classes(masks: Pixels, num_classes: int) -> Indices:
    """Return for each of ``masks`` (N, H, W) the foreground class with most pixels, 0 where all is background."""
    counts = np.stack([np.bincount(mask.ravel(), minlength=num_classes) for mask in masks])[:, 1:]
    return np.where(counts.any(1), counts.argmax(1) + 1, 0).astype(np.int64)
