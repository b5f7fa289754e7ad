"""Volumes in files of numpy's, as ``launch.py import --volumes whole`` writes them, made ready for training.

Shapes: N volumes, D slices of a file, S slices that are kept, H rows, W columns.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from fedsim.data.dataset import Pixels
from fedsim.data.datasets.med import evenly_spaced
from fedsim.data.images import fitted, listing, write_images
from fedsim.errors import UserError, reading
from fedsim.machine.cache import cached_folder

VOLUME = ".npy"
#: numpy has Python's parser read a header, which up to Python 3.11.7 and 3.12.1 may fail in one of two threads.
HEADER = Lock()
FORM = "a volume uint8 (slices, rows, columns), as launch.py import --volumes whole writes it"


def prepared_volumes(name: str, base: Path, paths: Sequence[Path], side: int, fit: str, slices: int) -> Path:
    """Return an .npy file (N, S, 1, side, side) with these volumes, read once for files of these sizes and times.

    Of each ``slices`` evenly spaced ones are kept, each made a square as ``fitted`` does.
    """
    key = [*listing(base, paths), side, fit, slices]
    return cached_folder(f"{name}-volumes", key, partial(_write, paths, side, fit, slices)) / "images.npy"


def _write(paths: Sequence[Path], side: int, fit: str, slices: int, folder: Path) -> None:
    shape = (len(paths), slices, 1, side, side)
    write_images(folder / "images.npy", shape, lambda index: read_volume(paths[index], side, fit, slices))


def read_volume(path: Path, side: int, fit: str, slices: int) -> Pixels:
    """Return (S, 1, side, side). UserError for a file that holds no volume (D, H, W) of 8 bits, or D below S."""
    with reading(str(path), FORM), HEADER:
        volume = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(volume, np.ndarray) or volume.dtype != np.uint8 or volume.ndim != 3:
            raise ValueError(f"{getattr(volume, 'dtype', 'several arrays')}{getattr(volume, 'shape', '')}")
    if len(volume) < slices:
        raise UserError(str(path), f"{len(volume)} slices", f"at least data.slices, {slices}")
    return np.stack([fitted(Image.fromarray(layer), side, fit) for layer in volume[evenly_spaced(len(volume), slices)]])
