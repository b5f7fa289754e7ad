"""The two-dimensional sets of MedMNIST v2 and its larger sizes (Yang et al., Scientific Data 10:41, 2023)."""

import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from fedsim.config_data import MEDMNIST_FLAGS
from fedsim.config_errors import nearest
from fedsim.data.cache import alone, cache_root, cached_folder, load_mapped
from fedsim.data.dataset import Indices, Pixels, Source
from fedsim.data.images import resized
from fedsim.data.splits import NAMES
from fedsim.errors import UserError

PUBLISHED_SIDES = (28, 64, 128, 224)
ROWS_AT_ONCE = 512


def medmnist_set(flag: str, root: str | None, image_size: int) -> Source:
    """Read a MedMNIST set with its official split, from ``<root>/<flag>[_<size>].npz``.

    ``root`` is the package's own folder (``~/.medmnist``) unless given. Of the published sizes 28, 64, 128
    and 224 the smallest is taken that is not below ``image_size``, and resized where they differ. A file that
    is not there is downloaded by the package. retinamnist's five grades are taken as classes. UserError for
    chestmnist (its images have several labels at once), and for a file that is missing or is not as
    published.
    """
    from medmnist import INFO  # here, since importing it creates ~/.medmnist, which other sets need not have

    if flag not in MEDMNIST_FLAGS:
        raise UserError("data.name", repr(f"medmnist:{flag}"), nearest(flag, MEDMNIST_FLAGS))
    if flag == "chestmnist":
        raise UserError("data.name", "medmnist:chestmnist, a multi-label set", "a set with one label per image")
    side = next((side for side in PUBLISHED_SIDES if side >= image_size), PUBLISHED_SIDES[-1])
    path = _find(flag, side, root)
    class_names = tuple(INFO[flag]["label"][str(code)] for code in range(len(INFO[flag]["label"])))
    labels, fixed = _read_labels(path, len(class_names))
    stat = path.stat()
    prepared = cached_folder(
        f"medmnist-{path.stem}",
        [str(path.resolve()), stat.st_size, stat.st_mtime_ns, image_size],
        partial(_unpack, path, len(labels), image_size),
    )
    return Source(images=load_mapped(prepared / "images.npy"), labels=labels, class_names=class_names, fixed=fixed)


def _find(flag: str, side: int, root: str | None) -> Path:
    """Return the set's file, downloading it where it is missing."""
    from medmnist.info import DEFAULT_ROOT

    folder = Path(root or DEFAULT_ROOT or "~/.medmnist").expanduser()
    path = folder / (f"{flag}.npz" if side == PUBLISHED_SIDES[0] else f"{flag}_{side}.npz")
    if path.is_file():
        return path
    if not folder.is_dir():
        raise UserError(f"data.root {folder}", "no such folder", f"a folder with (or for) {path.name}")
    try:
        with alone(cache_root() / f".{path.name}.lock"):
            if not path.is_file():  # while this process waited, another may have downloaded it
                _download(flag, side, path)
    except (OSError, RuntimeError) as error:
        raise UserError(
            str(path),
            "no such file, and downloading it failed",
            f"{path.name} copied there from the MedMNIST record (address: "
            f'python -c "import medmnist; print(medmnist.INFO[{flag!r}])")',
        ) from error
    return path


def _download(flag: str, side: int, path: Path) -> None:
    """Download into a folder of its own, so that ``path`` is never half a file."""
    import medmnist

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as scratch:
        reader = getattr(medmnist, medmnist.INFO[flag]["python_class"])
        reader(split="val", size=side, root=scratch, download=True)
        (Path(scratch) / path.name).replace(path)


def _read_labels(path: Path, num_classes: int) -> tuple[Indices, Indices]:
    """Return the labels of all images and the split each belongs to, in the order train, val, test."""
    try:
        with np.load(path, allow_pickle=False) as content:
            parts = [np.asarray(content[f"{name}_labels"]) for name in NAMES]
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise _not_as_published(path, str(error)) from error
    for name, part in zip(NAMES, parts, strict=True):
        if part.shape != (len(part), 1) or part.dtype.kind not in "iu" or np.any((part < 0) | (part >= num_classes)):
            raise _not_as_published(path, f"{name}_labels {part.dtype}{part.shape} within [{part.min()}, {part.max()}]")
    fixed = np.repeat(np.arange(len(NAMES)), [len(part) for part in parts])
    return np.concatenate(parts)[:, 0].astype(np.int64), fixed.astype(np.int64)


def _not_as_published(path: Path, found: str) -> UserError:
    keys = ", ".join(f"{name}_images, {name}_labels" for name in NAMES)
    return UserError(str(path), found, f"a MedMNIST file: {keys}; uint8 images, one label per image")


def _unpack(path: Path, num_images: int, side: int, folder: Path) -> None:
    """Write images.npy (N, C, side, side) from the compressed file, a few hundred images at a time."""
    out: Pixels | None = None
    done = 0
    for rows in _blocks(path):
        if out is None:
            out = _create(folder / "images.npy", num_images, rows, side)
        if done + len(rows) > num_images or rows.ndim != (4 if out.shape[1] == 3 else 3):
            raise _not_as_published(path, f"more images than the {num_images} labels, or of several kinds")
        out[done : done + len(rows)] = _to_channels_first(rows, side)
        done += len(rows)
    if done != num_images:
        raise _not_as_published(path, f"{done} images with {num_images} labels")


def _create(path: Path, num_images: int, rows: Pixels, side: int) -> Pixels:
    channels = 1 if rows.ndim == 3 else 3
    out: Pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(num_images, channels, side, side))
    return out


def _blocks(path: Path) -> Iterator[Pixels]:
    """Yield (n, H, W) or (n, H, W, 3) uint8 blocks of the images, in the order train, val, test."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in NAMES:
                with archive.open(f"{name}_images.npy") as file:
                    yield from _rows(file)
    except (KeyError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise _not_as_published(path, str(error)) from error


def _rows(file: IO[bytes]) -> Iterator[Pixels]:
    read_header = np.lib.format.read_array_header_1_0
    if np.lib.format.read_magic(file) != (1, 0):
        read_header = np.lib.format.read_array_header_2_0
    shape, column_major, dtype = read_header(file)
    if dtype != np.uint8 or column_major or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
        raise ValueError(f"images {dtype}{shape}")
    size = int(np.prod(shape[1:]))
    for start in range(0, shape[0], ROWS_AT_ONCE):
        count = min(ROWS_AT_ONCE, shape[0] - start)
        yield np.frombuffer(file.read(count * size), np.uint8).reshape(count, *shape[1:])


def _to_channels_first(rows: Pixels, side: int) -> Pixels:
    if rows.shape[1:3] != (side, side):
        return np.stack([resized(Image.fromarray(row), side, side) for row in rows])
    return rows[:, None] if rows.ndim == 3 else rows.transpose(0, 3, 1, 2)
