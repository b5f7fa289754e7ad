"""Prostate MRI of six sites (Liu et al., SAML, MICCAI 2020), prepared as HarmoFL's released code does.

X, Y, Z voxels of a volume; H = Y rows and W = X columns of a slice; N slices that are kept.
"""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedsim.config.data import DataConfig
from fedsim.data.dataset import Indices, Pixels, Source
from fedsim.data.datasets.folder import site_folders
from fedsim.data.folders import require_file, visible
from fedsim.data.images import listing, resized
from fedsim.data.masks import resized_mask
from fedsim.data.splits import TEST, TRAIN, VAL
from fedsim.data.volumes import CANONICAL, Voxels, open_volume, read_foreground, read_turned, require_grid
from fedsim.errors import UserError
from fedsim.machine.cache import cached_folder, load_mapped

LAYOUT = "<root>/<site>/Case00.nii.gz with <root>/<site>/Case00_segmentation.nii.gz"
SPLIT_FILES = "<root>/<site>-dir.npy and <root>/<site>-index.npy for every site, or for none"
MASK_NAME = re.compile(r"(.+)_segmentation(\.nii(?:\.gz)?)", re.IGNORECASE)
WHITE_QUANTILE = 0.99


@dataclass(frozen=True)
class Case:
    """The files of one patient."""

    image: Path
    mask: Path


def prostate(config: DataConfig) -> Source:
    """Read a folder of volumes per site; an image is a slice with the one before and the one after as channels.

    As released, slices without prostate and the first and last slice of a volume are left out, all foreground is one
    class, and grey values go from the volume's minimum, black, to its 99th percentile, white.

    Where HarmoFL's split files are in ``root``, they decide: ``<site>-dir.npy`` lists the masks in their order and
    ``<site>-index.npy`` shuffles the slices, of which 64 % are for training, 16 % for validation and 20 % for the test.
    So slices of one patient are in several splits. Without the files whole patients are drawn, at each site.

    Slices are axial, by the affines, in whatever order a volume is stored: columns run to the right, rows to the front,
    slices upwards. With the split files, which count slices as stored, the axes run as they do in the image's file, as
    released. A mask is brought to the axes of its image.
    UserError for a file that is missing, not finite, not three-dimensional, or of another size, spacing or axes than
    its image; two volumes of one name.
    """
    base = config.folder
    sites = site_folders(base, LAYOUT)
    files = [base / f"{site.name}-{kind}.npy" for site in sites for kind in ("dir", "index")]
    is_split = any(file.is_file() for file in files)
    volumes = [_volumes(site, _read_array(base / f"{site.name}-dir.npy", "U") if is_split else None) for site in sites]
    flat = [volume for own in volumes for volume in own]
    paths = [path for volume in flat for path in (volume.image, volume.mask)]
    key = [*listing(base, paths), config.image_size, is_split]
    folder = cached_folder("prostate", key, partial(_prepare, flat, config.image_size, is_split))
    volume_of = np.load(folder / "volumes.npy", allow_pickle=False)
    site_of = np.repeat(np.arange(len(sites)), [len(own) for own in volumes])[volume_of]
    fixed = None
    if is_split:
        counts = np.bincount(site_of, minlength=len(sites))
        fixed = np.concatenate([_released_split(file, n) for file, n in zip(files[1::2], counts, strict=True)])
    return Source(
        images=load_mapped(folder / "images.npy"),
        labels=np.ones(len(site_of), np.int64),  # every slice that is kept shows some prostate
        class_names=("background", "prostate"),
        groups=None if is_split else volume_of,
        sites=site_of,
        site_names=tuple(site.name for site in sites),
        fixed=fixed,
        strata=site_of,
        masks=load_mapped(folder / "masks.npy"),
        files=(*paths, *(files if is_split else ())),
    )


def _volumes(site: Path, listed: npt.NDArray[Any] | None) -> list[Case]:
    """Return a site's volumes: those whose masks are listed, in that order, or all by name."""
    there = [path.name for path in visible(site) if ".nii" in path.suffixes]
    names = there if listed is None else listed.tolist()
    matches = [match for match in map(MASK_NAME.fullmatch, names) if match is not None]
    found = [Case(site / f"{match[1]}{match[2]}", site / match[0]) for match in matches]
    for volume in found:
        require_file(volume.image, LAYOUT)
        require_file(volume.mask, LAYOUT)
    patients = [match[1] for match in matches]
    for patient, volume in zip(patients, found, strict=True):
        if patients.count(patient) > 1:
            raise UserError(str(volume.mask), "another mask or volume of that name beside it", "one of a name")
    if listed is None:
        known = {path.name for volume in found for path in (volume.image, volume.mask)}
        lone = next((name for name in there if name not in known), None)
        if lone is not None:
            raise UserError(str(site / lone), "no mask of that name", LAYOUT)
    if not found:
        raise UserError(str(site), "no training image", LAYOUT)
    return found


def _released_split(path: Path, num_slices: int) -> Indices:
    """Return the split of a site's slices: 64 %, 16 % and 20 % of them in the order of the file."""
    order = _read_array(path, "iu")
    if not np.array_equal(np.sort(order), np.arange(num_slices)):
        raise UserError(str(path), f"{len(order)} numbers", f"each of the site's {num_slices} slices once, from 0 on")
    # Rounded as the release does: down, from products in this order.
    end_of_train = 0.8 * num_slices * 0.8
    end_of_val = end_of_train + (0.8 * num_slices - end_of_train)
    splits = np.full(num_slices, TEST)
    splits[order[: int(end_of_val)]] = VAL
    splits[order[: int(end_of_train)]] = TRAIN
    return splits


def _read_array(path: Path, kinds: str) -> npt.NDArray[Any]:
    """Return the one-dimensional .npy array of a split file."""
    require_file(path, SPLIT_FILES)
    try:
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(str(path), str(error), SPLIT_FILES) from error
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise UserError(str(path), f"an array {array.dtype}{array.shape}", SPLIT_FILES)
    return array


def _prepare(volumes: list[Case], side: int, as_stored: bool, folder: Path) -> None:
    """Write images.npy (N, 3, side, side), masks.npy (N, side, side) and volumes.npy, the volume of each slice."""
    grids, kept, masks = [], [], []
    for volume in volumes:
        codes = open_volume(volume.image).axial_codes if as_stored else CANONICAL
        foreground, grid = read_foreground(open_volume(volume.mask), codes)
        mask = foreground.T
        slices = np.flatnonzero(mask[1:-1].any((1, 2))) + 1
        if len(slices) == 0:
            raise UserError(str(volume.mask), "no prostate between the first and the last slice", "some in every mask")
        grids.append((codes, grid))
        kept.append(slices)
        masks += [resized_mask(mask[z].astype(np.uint8), side, side) for z in slices]
    images = np.lib.format.open_memmap(
        folder / "images.npy", mode="w+", dtype=np.uint8, shape=(len(masks), 3, side, side)
    )
    rows = iter(range(len(masks)))
    for volume, (codes, grid), slices in zip(volumes, grids, kept, strict=True):
        voxels, own = read_turned(open_volume(volume.image), codes)
        require_grid(grid, own)
        grey = _scaled(voxels.T, volume.image)
        for z in slices:
            images[next(rows)] = resized(Image.fromarray(grey[z - 1 : z + 2].transpose(1, 2, 0)), side, side)
    images.flush()
    np.save(folder / "masks.npy", np.stack(masks))
    np.save(folder / "volumes.npy", np.repeat(np.arange(len(volumes)), [len(slices) for slices in kept]))


def _scaled(voxels: Voxels, path: Path) -> Pixels:
    """Map the minimum to 0 and the 99th percentile to 255, cutting off what is above it."""
    black, white = voxels.min(), np.quantile(voxels, WHITE_QUANTILE)
    if black == white:
        raise UserError(str(path), f"the value {black:g} in 99 % of the voxels", "a volume with contrast")
    grey: Pixels = ((voxels.clip(max=white) - black) / (white - black) * 255).astype(np.uint8)
    return grey
