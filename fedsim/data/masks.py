"""Masks, the class of every pixel: resized without inventing classes, and summed up as a label.

N masks, H and W pixels, C classes; class 0 is the background.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedsim.data.dataset import Indices, Pixels


def resized_mask(mask: npt.NDArray[np.uint8], width: int, height: int) -> Pixels:
    """Return a mask (H, W) as (height, width), each pixel with the class of the nearest one."""
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST), np.uint8)


def main_classes(masks: Pixels, num_classes: int) -> Indices:
    """Return for each of ``masks`` (N, H, W) the foreground class with most pixels, 0 where all is background."""
    counts = np.stack([np.bincount(mask.ravel(), minlength=num_classes) for mask in masks])[:, 1:]
    return np.where(counts.any(1), counts.argmax(1) + 1, 0).astype(np.int64)
