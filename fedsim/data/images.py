"""Reading image files and resizing them.

Every image becomes square by stretching: nothing is cut off, and no border tells the original shape, which in
collections from several scanners can give the class away.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fedsim.data.cache import cached_folder
from fedsim.data.dataset import Pixels
from fedsim.errors import UserError

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; UserError naming the file where it cannot be decoded, here or by the caller."""
    try:
        with Image.open(path) as image:
            yield image
    except UserError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(str(path), f"an unreadable image ({error})", "a whole image file") from error


def read_rgb(path: Path) -> Image.Image:
    """Decode an image file to 8-bit RGB, without its alpha channel if any; UserError where that is not possible."""
    with opened(path) as image:
        # Pillow opens colours of 16 bits as 8 bits and drops the lower ones; only the stored mode tells.
        stored = str(image.tile[0][3]) if image.format in ("TIFF", "PNG") else ""
        if image.mode in EIGHT_BIT_MODES and ";16" not in stored:
            return image.convert("RGB")
        mode = f"{image.mode}, 16 bits" if image.mode in EIGHT_BIT_MODES else image.mode
    # How 16 bits or floats map to 8 depends on the scanner: guessing a window would change the data silently.
    raise UserError(
        str(path), f"pixels of mode {mode}", "an image with 8 bits per channel; convert it with your window"
    )


def read_opaque(path: Path) -> Image.Image:
    """Decode an image file as ``read_rgb`` does, but refuse transparency: a mask may hold for what it hides."""
    with opened(path) as image:
        if image.has_transparency_data:
            raise UserError(str(path), f"an alpha channel (mode {image.mode})", "an image without one: grey or RGB")
    return read_rgb(path)


def resized(image: Image.Image, width: int, height: int) -> Pixels:
    """Return (C, height, width) uint8 by bicubic interpolation, antialiased where it shrinks."""
    small = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.uint8)
    return small[None] if small.ndim == 2 else small.transpose(2, 0, 1)


def write_images(path: Path, shape: tuple[int, int, int, int], produce: Callable[[int], Pixels]) -> None:
    """Write an .npy file (N, C, H, W) uint8 whose n-th image is ``produce(n)``, several at a time."""
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)

    def put(index: int) -> None:
        out[index] = produce(index)

    with ThreadPoolExecutor(min(16, len(os.sched_getaffinity(0)))) as pool:
        for _ in pool.map(put, range(shape[0])):
            pass
    out.flush()


def write_resized(paths: Sequence[Path], side: int, folder: Path) -> None:
    """Write ``folder``/images.npy with these image files as (N, 3, side, side)."""
    write_images(
        folder / "images.npy",
        (len(paths), 3, side, side),
        lambda index: resized(read_rgb(paths[index]), side, side),
    )


def prepared_files(name: str, base: Path, paths: Sequence[Path], side: int) -> Path:
    """Return an .npy file (N, 3, side, side) with these image files under ``base``.

    They are decoded and resized once for this list of files with these sizes and times, in the cache under ``name``.
    """
    folder = cached_folder(name, [*listing(base, paths), side], partial(write_resized, paths, side))
    return folder / "images.npy"


def listing(base: Path, paths: Sequence[Path]) -> list[object]:
    """Return what tells these files under ``base`` from others in a cache: names, sizes, times."""
    stats = [path.stat() for path in paths]
    files = [
        [str(path.relative_to(base)), stat.st_size, stat.st_mtime_ns] for path, stat in zip(paths, stats, strict=True)
    ]
    return [str(base.resolve()), files]
