"""Volumes with masks to pictures of their slices, those that show something.

X, Y, Z voxels of a volume; H = Y rows and W = X columns of a slice; N slices that are kept, S the side of a picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fedsim.data.images import listing, resized
from fedsim.data.masks import resized_mask
from fedsim.data.volumes import CANONICAL, Volume, open_volume, read_classes, read_turned, require_grid, scaled
from fedsim.errors import UserError
from fedsim.machine.cache import cached_folder


@dataclass(frozen=True)
class Case:
    """The files of a volume. ``moment``: its place on the fourth axis, time, where the files have one."""

    image: Path
    mask: Path
    moment: int | None = None


@dataclass(frozen=True)
class Slicing:
    """How volumes are cut. ``classes``: the names of a mask's values, the background first.

    ``codes``: which way the axes are to run, as the image's file tells it; None: in canonical order. Slices follow one
    another along the third axis. ``is_merged``: all that is not 0 in a mask is one class. ``with_neighbours``: a slice
    has the one before and the one after as its channels, and the first and the last are left out; else it is grey.
    """

    classes: tuple[str, ...]
    codes: Callable[[Volume], str] | None = None
    is_merged: bool = False
    with_neighbours: bool = False


def sliced(name: str, base: Path, cases: Sequence[Case], side: int, slicing: Slicing, key: object = None) -> Path:
    """Return the cached folder of images.npy (N, 1 or 3, S, S), masks.npy (N, S, S) and volumes.npy (N,), whose slice.

    Grey values go from a volume's minimum, black, to its 99th percentile, white. ``key``: what else than the files
    tells the slices from others. UserError for a volume that cannot be read, a mask that does not lie on the grid of
    its image, shows nothing, or has values that are no class.
    """
    files = listing(base, [path for case in cases for path in (case.image, case.mask)])
    whole = [*files, [case.moment for case in cases], side, key]
    return cached_folder(name, whole, partial(_prepare, cases, side, slicing))


def _prepare(cases: Sequence[Case], side: int, slicing: Slicing, folder: Path) -> None:
    grids, kept, masks = [], [], []
    for case in cases:
        codes = CANONICAL if slicing.codes is None else slicing.codes(_opened(case.image, case))
        classes, grid = read_classes(_opened(case.mask, case), codes, case.moment)
        mask_ZHW = _mask(case, classes.T, slicing)
        inner = 1 if slicing.with_neighbours else 0
        slices = np.flatnonzero(mask_ZHW[inner : len(mask_ZHW) - inner].any((1, 2))) + inner
        if len(slices) == 0:
            between = " between the first and the last slice" if inner else ""
            raise UserError(str(case.mask), f"no {' or '.join(slicing.classes[1:])}{between}", "some in every mask")
        grids.append((codes, grid))
        kept.append(slices)
        masks += [resized_mask(mask_ZHW[z], side, side) for z in slices]
    channels = 3 if slicing.with_neighbours else 1
    images = np.lib.format.open_memmap(
        folder / "images.npy", mode="w+", dtype=np.uint8, shape=(len(masks), channels, side, side)
    )
    rows = iter(range(len(masks)))
    for case, (codes, grid), slices in zip(cases, grids, kept, strict=True):
        voxels, own = read_turned(_opened(case.image, case), codes, case.moment)
        require_grid(grid, own)
        grey_ZHW = scaled(voxels.T, case.image)
        for z in slices:
            layers = grey_ZHW[z - 1 : z + 2].transpose(1, 2, 0) if slicing.with_neighbours else grey_ZHW[z]
            images[next(rows)] = resized(Image.fromarray(layers), side, side)
    images.flush()
    np.save(folder / "masks.npy", np.stack(masks))
    np.save(folder / "volumes.npy", np.repeat(np.arange(len(cases)), [len(slices) for slices in kept]))


def _opened(path: Path, case: Case) -> Volume:
    """Open a volume, and see that it has the moment of its case."""
    volume = open_volume(path, in_time=case.moment is not None)
    if case.moment is not None and case.moment >= volume.num_moments:
        found = f"{volume.num_moments} moments, and number {case.moment} in the table, counted from 0"
        raise UserError(str(path), found, "the moments that the table names")
    return volume


def _mask(case: Case, classes_ZHW: np.ndarray, slicing: Slicing) -> np.ndarray:
    """Return the classes (Z, H, W) as uint8; UserError for a number that is none."""
    if slicing.is_merged:
        return (classes_ZHW > 0).astype(np.uint8)
    if (highest := classes_ZHW.max()) >= len(slicing.classes):
        known = ", ".join(f"{number} {name}" for number, name in enumerate(slicing.classes))
        raise UserError(str(case.mask), f"the number {highest:g}", known)
    return classes_ZHW.astype(np.uint8)
