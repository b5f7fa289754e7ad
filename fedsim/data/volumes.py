"""NIfTI volumes, turned to the axes that are asked for; a mask must lie on the grid of its image.

X, Y, Z voxels along a volume's axes. Codes name the ends that the axes run to, such as RAS: right, anterior, superior.
"""

import gzip
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.data.dataset import Pixels
from fedsim.data.folders import require_file
from fedsim.data.masks import require_size
from fedsim.errors import UserError

#: Left to right, back to front, bottom to top: the third axis runs through the axial slices.
CANONICAL = "RAS"
WHOLE = "a whole NIfTI file"
CHUNK = 1 << 20
#: The bits of a header that tell the unit of its affine, and the units that are none of mm: metre, micrometre.
UNIT_OF_SPACE, MILLIMETRES = 0b111, {1: 1e3, 3: 1e-3}
WHITE_QUANTILE = 0.99
Voxels = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Volume:
    """A NIfTI file whose header is sound: ``image`` is nibabel's, ``affine`` (4, 4) leads from voxels to mm.

    Where the header tells no orientation, the affine has its spacing, with the axes in canonical order as stored.
    """

    path: Path
    image: Any
    affine: npt.NDArray[np.float64]
    is_oriented: bool

    @property
    def codes(self) -> str:
        """The codes of its own axes as stored."""
        return "".join(_turning().aff2axcodes(self.affine))

    @property
    def axial_codes(self) -> str:
        """Those codes, put into the order that makes the slices axial."""
        return "".join(sorted(self.codes, key="RLAPSI".index))

    @property
    def num_moments(self) -> int:
        """How long the fourth axis, time, is."""
        return int(self.image.shape[3]) if len(self.image.shape) > 3 else 1


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie: ``shape`` (X, Y, Z) and ``affine`` (4, 4), both after turning."""

    path: Path
    shape: tuple[int, ...]
    affine: npt.NDArray[np.float64]
    is_oriented: bool


def open_volume(path: Path, in_time: bool = False) -> Volume:
    """Read the header of a NIfTI file and see that its voxels are there, those of a gzip file by its checksum.

    UserError for a file that is no whole NIfTI file, voxels that are not one real number each, and more than three
    axes longer than 1, or four where the fourth is time.
    """
    import nibabel  # here, as it costs a fifth of a second that other sets need not pay

    require_file(path, WHOLE)
    nibabel.imageglobals.logger.setLevel(logging.CRITICAL)  # its lines about odd headers name no file
    try:
        image: Any = nibabel.load(path)
        num_bytes = _num_bytes(path)
        header, shape, dtype = image.header, image.shape, image.get_data_dtype()
        start = image.dataobj.offset
        is_oriented = bool(header["qform_code"] != 0 or header["sform_code"] != 0)
        affine = image.affine if is_oriented else np.diag([*header.get_zooms()[:3], 1.0])
        affine = np.diag([*[MILLIMETRES.get(int(header["xyzt_units"]) & UNIT_OF_SPACE, 1.0)] * 3, 1.0]) @ affine
    except Exception as error:  # a damaged header can raise anything in a reader
        raise UserError(str(path), f"an unreadable volume ({error})", WHOLE) from error
    if dtype.kind not in "iuf":
        raise UserError(str(path), f"voxels of type {dtype.name}", "one real number for each voxel")
    num_axes = 4 if in_time else 3
    if len(shape) < num_axes or min(shape) < 1 or max(shape[num_axes:], default=1) > 1:
        raise UserError(str(path), f"voxels {shape}", "four axes" if in_time else "three axes")
    if start + math.prod(shape) * dtype.itemsize > num_bytes:
        raise UserError(str(path), f"{num_bytes} bytes for voxels {shape} of {dtype.name}", WHOLE)
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise UserError(str(path), "an affine that does not tell three axes", WHOLE)
    return Volume(path, image, affine, is_oriented)


def _num_bytes(path: Path) -> int:
    """Return the size of a file's content; nibabel does not read a gzip file to its end, where the checksum is."""
    if path.suffix.lower() != ".gz":
        return path.stat().st_size
    num_bytes = 0
    with gzip.open(path) as file:
        while chunk := file.read(CHUNK):
            num_bytes += len(chunk)
    return num_bytes


def read_turned(volume: Volume, codes: str, moment: int | None = None) -> tuple[Voxels, Grid]:
    """Return the voxels (X, Y, Z), all of them finite, with axes that run as ``codes`` say, and where they lie.

    ``moment``: which place on the fourth axis, time, of a volume that has one.
    """
    with _unreadable(volume):
        data = volume.image.dataobj
        taken = data if moment is None else data[:, :, :, moment]
        values = np.asarray(taken, np.float64).reshape(volume.image.shape[:3])
    return _turned(volume, values, codes)


def read_stored(volume: Volume, codes: str) -> tuple[npt.NDArray[Any], Grid]:
    """Return the same before the header's slope and intercept, in the type of the file.

    That is an eighth of the memory where voxels have 8 bits; ``values_of`` gives the values of as many as are needed.
    """
    with _unreadable(volume):
        stored = np.asarray(volume.image.dataobj.get_unscaled()).reshape(volume.image.shape[:3])
    return _turned(volume, stored, codes)


@contextmanager
def _unreadable(volume: Volume) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # as above
        raise UserError(str(volume.path), f"an unreadable volume ({error})", WHOLE) from error


def _turned(volume: Volume, stored: npt.NDArray[Any], codes: str) -> tuple[npt.NDArray[Any], Grid]:
    """Return finite voxels (X, Y, Z) turned as ``codes`` say, and where they lie."""
    num_bad = int((~np.isfinite(stored)).sum()) if stored.dtype.kind == "f" else 0
    if num_bad > 0:
        found = f"{num_bad} of {stored.size} voxels nan or infinite"
        raise UserError(str(volume.path), found, "finite voxels")
    turning = _turning()
    turn = turning.ornt_transform(turning.io_orientation(volume.affine), turning.axcodes2ornt(codes))
    voxels: npt.NDArray[Any] = turning.apply_orientation(stored, turn)
    affine = volume.affine @ turning.inv_ornt_aff(turn, stored.shape)
    return voxels, Grid(volume.path, voxels.shape, affine, volume.is_oriented)


def values_of(volume: Volume, stored: npt.NDArray[Any]) -> Voxels:
    """Return the values of voxels of any shape: the header's slope and intercept applied as nibabel does."""
    from nibabel.volumeutils import apply_read_scaling  # as in open_volume

    slope, intercept = (np.float64(number) for number in (volume.image.dataobj.slope, volume.image.dataobj.inter))
    return np.asarray(apply_read_scaling(stored, slope, intercept), np.float64)


def _turning() -> Any:
    """Return nibabel's functions about orientations, which have no types."""
    import nibabel  # as in open_volume

    return nibabel.orientations


def read_classes(volume: Volume, codes: str, moment: int | None = None) -> tuple[Voxels, Grid]:
    """Return a mask's whole numbers as ``read_turned`` does; UserError for what is no class, such as probabilities."""
    voxels, grid = read_turned(volume, codes, moment)
    classes = np.rint(voxels)  # a scale factor in the header makes them a little off
    strange = voxels[(np.abs(voxels - classes) > 1e-3) | (classes < 0)]
    if strange.size:
        raise UserError(
            str(volume.path), f"{strange.size} voxels such as {strange[0]:g}", "whole numbers, 0 for the background"
        )
    return classes, grid


def require_grid(mask: Grid, image: Grid) -> None:
    """UserError where a mask has not the size, spacing and axes of its image; their origins may differ.

    Rounded affines are no fault: with one origin for both, no voxel may be off by more than one.
    """
    require_size(mask.path, mask.shape, image.shape)
    if mask.is_oriented != image.is_oriented:
        without = mask if image.is_oriented else image
        raise UserError(
            str(without.path),
            "no orientation in its header",
            f"one, as {(image if image.is_oriented else mask).path.name} has",
        )
    apart = np.linalg.solve(image.affine[:3, :3], mask.affine[:3, :3] - image.affine[:3, :3])
    furthest = float((np.abs(apart) @ (np.array(image.shape) - 1)).max())
    if furthest > 1:
        spacings = [
            " x ".join(f"{size:.4g}" for size in np.linalg.norm(g.affine[:3, :3], axis=0)) for g in (mask, image)
        ]
        found = (
            f"voxels of {spacings[0]} mm, which the affine puts up to {furthest:.3g} voxels beside those of the image"
        )
        raise UserError(str(mask.path), found, f"the spacing and axes of {image.path.name}: {spacings[1]} mm")


def scaled(voxels: Voxels, path: Path) -> Pixels:
    """Map the minimum to 0 and the 99th percentile to 255, cutting off what is above it; UserError without contrast."""
    black, white = voxels.min(), np.quantile(voxels, WHITE_QUANTILE)
    if black == white:
        raise UserError(str(path), f"the value {black:g} in 99 % of the voxels", "a volume with contrast")
    grey: Pixels = ((voxels.clip(max=white) - black) / (white - black) * 255).astype(np.uint8)
    return grey
