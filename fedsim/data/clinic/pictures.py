"""PNG, TIFF, JPEG, BMP and WebP by Pillow; grey values of 16 bits or floats keep their values.

H rows, W columns.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from fedsim.data.clinic.scan import Frame, Scan
from fedsim.data.images import EIGHT_BIT_MODES, FORMATS, decoded
from fedsim.errors import UserError, reading

GREY_MODES = ("1", "L")
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
MM_PER_INCH = 25.4
#: What cameras and screens write into the others says nothing about the size of anything.
WITH_SPACING = "TIFF"
TURNED = (5, 6, 7, 8)
ORIENTATION = 0x0112


def read_picture(path: Path) -> Scan:
    """Read an image file: 8 bits as they are, grey or RGB without alpha channel; deeper grey as its values.

    UserError for a file that cannot be decoded, several pages, and colours of 16 bits.
    """
    image, is_deep = decoded(path)
    spacing, is_inverted = _tags(path)
    if image.mode in EIGHT_BIT_MODES:
        if is_deep:
            raise UserError(str(path), "colours of 16 bits", "grey values of 16 bits, or colours of 8")
        frame = Frame(np.asarray(image.convert("L" if image.mode in GREY_MODES else "RGB"), np.uint8), spacing)
    else:
        values = np.asarray(image)
        if values.ndim != 2 or not np.isfinite(values).all():
            raise UserError(str(path), f"pixels of mode {image.mode}", "one finite value for each pixel")
        # Pillow inverts what has 8 bits and leaves what has more.
        values = values.astype(np.float32 if values.itemsize <= 2 else np.float64)
        frame = Frame(values, spacing, is_inverted=is_inverted)
    return Scan(num_frames=1, frame=lambda _: frame)


def _tags(path: Path) -> tuple[tuple[float, float] | None, bool]:
    """Return mm between rows and between columns where the file tells them, and whether its lowest value is white."""
    with (
        reading(str(path), "tags that can be read"),
        path.open("rb") as file,
        Image.open(file, formats=FORMATS) as image,
    ):
        if image.format != WITH_SPACING:
            return None, False
        is_inverted = image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
        across, down = (float(dots) for dots in image.info.get("dpi") or (0, 0))
        if not (0 < across < np.inf and 0 < down < np.inf):
            return None, is_inverted
        spacing = MM_PER_INCH / down, MM_PER_INCH / across
        return (spacing[::-1] if image.getexif().get(ORIENTATION) in TURNED else spacing), is_inverted
