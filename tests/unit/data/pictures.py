"""Pictures as a scanner might make them."""

import numpy as np
from PIL import Image


def make_pictures(count: int) -> list[Image.Image]:
    """Soft blobs on a black background, as a scan has it, each image its own."""
    rng = np.random.default_rng(4)
    images = []
    for _ in range(count):
        blobs = Image.fromarray(rng.integers(40, 160, (7, 7), np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
        frame = Image.new("L", (128, 128))
        frame.paste(blobs, (16, 16))
        images.append(frame.convert("RGB"))
    return images
