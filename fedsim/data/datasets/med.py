"""The sets of MedMNIST v2 and their larger sizes (Yang et al., Scientific Data 10:41, 2023).

Shapes: N images or volumes, S slices of a volume, C channels.
"""

import math
import tempfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from fedsim.config.data import DataConfig
from fedsim.data.dataset import Indices, Pixels, Source
from fedsim.data.digests import content_digests
from fedsim.data.findings import rarest_findings
from fedsim.data.folders import exists, require_file
from fedsim.data.images import resized
from fedsim.data.splits import NAMES
from fedsim.errors import UserError, reading
from fedsim.machine.cache import alone, cache_root, cached_folder, load_mapped

PUBLISHED_SIDES = (28, 64, 128, 224)
PUBLISHED_SIDES_OF_VOLUMES = (28, 64)
BYTES_AT_ONCE = 2**18
FORM = (
    f"a MedMNIST file: {', '.join(f'{name}_images, {name}_labels' for name in NAMES)}; "
    "square uint8 images or cubes, one label for each, every class in train; of chestmnist 0 or 1 for each finding"
)
SEVERAL, GRADES = "multi-label, binary-class", "ordinal-regression"


def medmnist_set(config: DataConfig) -> Source:
    """Read a MedMNIST set with its official split, from ``<root>/<flag>[_<size>].npz``.

    ``root`` is the package's own folder (``~/.medmnist``) unless given. Of the published sizes 28, 64, 128
    and 224, of volumes 28 and 64, the smallest is taken that is not below ``image_size``, and resized where they
    differ. Of a volume only ``config.slices`` slices are kept, see ``evenly_spaced``. A file that
    is not there is downloaded by the package. Images of chestmnist have several findings at once. A remark tells of a
    file whose counts or MD5 are not the published ones. UserError for more slices than there are, and for a file that
    is missing or of another form.
    """
    from medmnist import INFO  # here, since importing it creates ~/.medmnist, which other sets need not have

    flag = config.name.removeprefix("medmnist:")
    sides = PUBLISHED_SIDES if config.slices is None else PUBLISHED_SIDES_OF_VOLUMES
    side = next((side for side in sides if side >= config.image_size), sides[-1])
    if config.slices is not None and config.slices > side:
        raise UserError("data.slices", str(config.slices), f"at most the {side} of a published volume")
    path = _find(flag, side, config.root)
    class_names = tuple(INFO[flag]["label"][str(code)] for code in range(len(INFO[flag]["label"])))
    task = INFO[flag]["task"]
    parts = _read_labels(path, len(class_names), several=task == SEVERAL)
    counts = [len(part) for part in parts]
    stat = path.stat()
    prepared = cached_folder(
        f"medmnist-{path.stem}",
        [str(path.resolve()), stat.st_size, stat.st_mtime_ns, config.image_size, config.slices],
        partial(_unpack, path, counts, side, config.image_size, config.slices),
    )
    labels = np.concatenate(parts)
    targets = labels.astype(np.float32) if task == SEVERAL else None
    return Source(
        images=load_mapped(prepared / "images.npy"),
        labels=labels if targets is None else rarest_findings(targets),
        targets=targets,
        is_graded=task == GRADES,
        class_names=class_names,
        fixed=np.repeat(np.arange(len(NAMES)), counts),
        files=(path,),
        remarks=_remarks(path, flag, side, counts),
    )


def _remarks(path: Path, flag: str, side: int, counts: list[int]) -> tuple[str, ...]:
    """Say where a file is not the published one of its name: by its counts, which are free, or else by its MD5."""
    from medmnist import INFO

    published = [INFO[flag]["n_samples"][name] for name in NAMES]
    if counts != published:
        found, expected = ("/".join(map(str, numbers)) for numbers in (counts, published))
        return (f"{path} is not the published {flag}: {found} images in {'/'.join(NAMES)}, published {expected}",)
    digest, expected = (
        content_digests([path], "md5")[0],
        INFO[flag]["MD5" if side == PUBLISHED_SIDES[0] else f"MD5_{side}"],
    )
    if digest != expected:
        return (f"{path} is not the published file of {flag}, whose counts it has: MD5 {digest}, published {expected}",)
    return ()


def _find(flag: str, side: int, root: str | None) -> Path:
    """Return the set's file, downloading it where it is missing."""
    from medmnist.info import DEFAULT_ROOT

    folder = Path(root or DEFAULT_ROOT or "~/.medmnist").expanduser()
    path = folder / (f"{flag}.npz" if side == PUBLISHED_SIDES[0] else f"{flag}_{side}.npz")
    if exists(path):
        require_file(path, "a file")
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


def _read_labels(path: Path, num_classes: int, *, several: bool) -> list[Indices]:
    """Return the labels of train, val and test, (N,), or (N, F) of 0 and 1 where an image may have ``several``."""
    with reading(str(path), FORM), zipfile.ZipFile(path) as archive:
        parts = []
        for name in NAMES:
            with archive.open(f"{name}_labels.npy") as file:
                parts.append(_labels(file, f"{name}_labels", num_classes, several=several))
        missing = set() if several else set(range(num_classes)) - set(parts[0].tolist())
        if missing:
            raise ValueError(f"train_labels without class {min(missing)}")
    return parts


def _labels(file: IO[bytes], name: str, num_classes: int, *, several: bool) -> Indices:
    """Return labels (N,), published as (N, 1), or (N, F), from the bytes of an array."""
    shape, column_major, dtype = _header(file)
    fits = shape[1:] == (num_classes,) if several else len(shape) in (1, 2) and shape[1:] in ((), (1,))
    if not shape or shape[0] < 1 or not fits or dtype.kind not in "iu":
        raise ValueError(f"{name} {dtype}{shape}")
    values = np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype)
    if len(values) != math.prod(shape) or file.read(1):
        raise ValueError(f"{name} of another size than {dtype}{shape}")
    if values.min() < 0 or values.max() >= (2 if several else num_classes):
        raise ValueError(f"{name} {dtype}{shape} within [{values.min()}, {values.max()}]")
    values = values.astype(np.int64)
    return values.reshape(shape, order="F" if column_major else "C") if several else values


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order (true: column-major) and type of an array, and leave the file at its first number."""
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _unpack(
    path: Path, counts: list[int], published_side: int, side: int, num_slices: int | None, folder: Path
) -> None:
    """Write images.npy (N, C, side, side), or (N, S, 1, side, side), from the compressed file, a few at a time."""
    out: Pixels | None = None
    done = 0
    for rows in _blocks(path, counts, published_side, is_volume=num_slices is not None):
        if num_slices is None:
            part = _to_channels_first(rows, side)
        else:
            chosen = rows[:, evenly_spaced(published_side, num_slices)]
            part = _to_channels_first(chosen.reshape(-1, published_side, published_side), side)
            part = part.reshape(len(rows), num_slices, 1, side, side)
        if out is None:
            shape = (sum(counts), *part.shape[1:])
            out = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        out[done : done + len(rows)] = part
        done += len(rows)


def evenly_spaced(depth: int, num_slices: int) -> Indices:
    """Return which of ``depth`` slices are the middles of ``num_slices`` equal parts, int64 (S,)."""
    return (2 * np.arange(num_slices, dtype=np.int64) + 1) * depth // (2 * num_slices)


def _blocks(path: Path, counts: list[int], side: int, *, is_volume: bool) -> Iterator[Pixels]:
    """Yield uint8 blocks (n, side, side) or (n, side, side, 3), of volumes (n, side, side, side): train, val, test."""
    shapes = ([side, side, side],) if is_volume else ([side, side], [side, side, 3])
    shape: tuple[int, ...] | None = None
    with reading(str(path), FORM), zipfile.ZipFile(path) as archive:
        for name, count in zip(NAMES, counts, strict=True):
            with archive.open(f"{name}_images.npy") as file:
                (num_images, *one), column_major, dtype = _header(file)
                if dtype != np.uint8 or column_major or one not in shapes:
                    raise ValueError(f"{name}_images {dtype}{(num_images, *one)} in a file of side {side}")
                if num_images != count:
                    raise ValueError(f"{num_images} {name}_images with {count} labels")
                if shape not in (None, tuple(one)):
                    raise ValueError(f"{name}_images of another kind than those of train")
                shape = tuple(one)
                yield from _rows(file, (num_images, *one))


def _rows(file: IO[bytes], shape: tuple[int, ...]) -> Iterator[Pixels]:
    size = math.prod(shape[1:])
    at_once = max(1, BYTES_AT_ONCE // size)
    for start in range(0, shape[0], at_once):
        count = min(at_once, shape[0] - start)
        yield np.frombuffer(file.read(count * size), np.uint8).reshape(count, *shape[1:])
    if file.read(1):
        raise ValueError(f"more bytes than an array {shape} has")


def _to_channels_first(rows: Pixels, side: int) -> Pixels:
    if rows.shape[1:3] != (side, side):
        return np.stack([resized(Image.fromarray(row), side, side) for row in rows])
    return rows[:, None] if rows.ndim == 3 else rows.transpose(0, 3, 1, 2)
