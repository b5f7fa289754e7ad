"""Prostate MRI of six sites (Liu et al., SAML, MICCAI 2020), prepared as HarmoFL's released code does."""

import re
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.config.data import DataConfig
from fedsim.data.dataset import Indices, Source
from fedsim.data.datasets.folder import site_folders
from fedsim.data.datasets.volume_slices import Case, Slicing, sliced
from fedsim.data.folders import require_file, visible
from fedsim.data.splits import TEST, TRAIN, VAL
from fedsim.errors import UserError
from fedsim.machine.cache import load_mapped

CLASS_NAMES = ("background", "prostate")
LAYOUT = "<root>/<site>/Case00.nii.gz with <root>/<site>/Case00_segmentation.nii.gz"
SPLIT_FILES = "<root>/<site>-dir.npy and <root>/<site>-index.npy for every site, or for none"
MASK_NAME = re.compile(r"(.+)_segmentation(\.nii(?:\.gz)?)", re.IGNORECASE)


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
    codes = attrgetter("axial_codes") if is_split else None
    slicing = Slicing(CLASS_NAMES, codes, is_merged=True, with_neighbours=True)
    folder = sliced("prostate", base, flat, config.image_size, slicing, key=is_split)
    volume_of = np.load(folder / "volumes.npy", allow_pickle=False)
    site_of = np.repeat(np.arange(len(sites)), [len(own) for own in volumes])[volume_of]
    fixed = None
    if is_split:
        counts = np.bincount(site_of, minlength=len(sites))
        fixed = np.concatenate([_released_split(file, n) for file, n in zip(files[1::2], counts, strict=True)])
    return Source(
        images=load_mapped(folder / "images.npy"),
        labels=np.ones(len(site_of), np.int64),  # every slice that is kept shows some prostate
        class_names=CLASS_NAMES,
        groups=None if is_split else volume_of,
        sites=site_of,
        site_names=tuple(site.name for site in sites),
        fixed=fixed,
        strata=site_of,
        masks=load_mapped(folder / "masks.npy"),
        files=(*(path for case in flat for path in (case.image, case.mask)), *(files if is_split else ())),
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
