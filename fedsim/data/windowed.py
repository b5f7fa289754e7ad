"""Image files of the user's own, whose grey values beyond 8 bits become grey levels by ``data.window``.

What ``launch.py import`` makes of such a picture is made of it here too, to the bit.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fedsim.config.data import DataConfig
from fedsim.data.clinic.pictures import read_picture
from fedsim.data.clinic.scan import Frame
from fedsim.data.clinic.windows import Request, levels_of, parse_window, shown, windows_of
from fedsim.data.dataset import Pixels
from fedsim.data.images import Reader, prepared_files, read_rgb
from fedsim.errors import UserError


def reader_of(window: str | None, plain: Reader = read_rgb) -> Reader:
    """Return what decodes a file: ``plain``, where there is no window, and for what has 8 bits.

    UserError as ``request_of``.
    """
    return plain if window is None else partial(_read, request_of(window), plain)


def request_of(window: str) -> Request:
    """Return what ``data.window`` asks for; UserError for one that is none."""
    try:
        return parse_window(window)
    except UserError as error:
        raise UserError("data.window", error.found, "CENTRE/WIDTH or LOW%-HIGH%") from None


def grey_levels(where: str, frame: Frame, request: Request) -> Pixels:
    """Return the grey levels (H, W) of a frame's values; ``where`` is its name for an error."""
    (window,) = windows_of(where, [frame], request, "")
    return np.asarray(levels_of(shown(frame, window), 8), np.uint8)


def _read(request: Request, plain: Reader, path: Path) -> Image.Image:
    """UserError as ``read_picture``, and as ``plain``."""
    frame = read_picture(path).frame(0)
    if frame.values.dtype == np.uint8:
        return plain(path)
    return Image.fromarray(grey_levels(str(path), frame, request)).convert("RGB")


def window_key(config: DataConfig) -> list[object]:
    """Return what tells pictures with this window from others in a cache."""
    return [] if config.window is None else ["window", config.window]


def prepared(name: str, base: Path, paths: Sequence[Path], config: DataConfig) -> Path:
    """Return an .npy file (N, 3, S, S) with these image files, prepared as ``config`` says: see ``prepared_files``."""
    read = None if config.window is None else reader_of(config.window)
    return prepared_files(name, base, paths, config.image_size, config.fit, read, window_key(config))
