"""Image files of the user's own, whose grey values beyond 8 bits become grey levels by ``data.window``.

What ``launch.py import`` makes of such a picture is made of it here too, to the bit.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from fedsim.config.data import DataConfig
from fedsim.data.clinic.pictures import read_picture
from fedsim.data.clinic.windows import Request, levels_of, parse_window, shown, windows_of
from fedsim.data.images import Reader, prepared_files, read_rgb
from fedsim.errors import UserError


def reader_of(window: str | None, plain: Reader = read_rgb) -> Reader:
    """Return what decodes a file: ``plain``, where there is no window, and for what has 8 bits.

    UserError for a window that is none, or that a picture cannot bring itself.
    """
    if window is None:
        return plain
    try:
        request = parse_window(window)
    except UserError as error:
        raise UserError("data.window", error.found, "CENTRE/WIDTH or LOW%-HIGH%") from None
    return partial(_read, request, plain)


def _read(request: Request, plain: Reader, path: Path) -> Image.Image:
    """UserError as ``read_picture``, and as ``plain``."""
    frame = read_picture(path).frame(0)
    if frame.values.dtype == "uint8":
        return plain(path)
    (window,) = windows_of(str(path), [frame], request, "")
    return Image.fromarray(levels_of(shown(frame, window), 8)).convert("RGB")


def window_key(config: DataConfig) -> list[object]:
    """Return what tells pictures with this window from others in a cache."""
    return [] if config.window is None else ["window", config.window]


def prepared(name: str, base: Path, paths: Sequence[Path], config: DataConfig) -> Path:
    """Return an .npy file (N, 3, S, S) with these image files, prepared as ``config`` says: see ``prepared_files``."""
    read = None if config.window is None else reader_of(config.window)
    return prepared_files(name, base, paths, config.image_size, config.fit, read, window_key(config))
