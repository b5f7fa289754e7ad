"""Your own images with masks, in folders: binary masks of any kind, such as polyps, lesions or vessels."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedsim.config.data import DataConfig
from fedsim.data.dataset import Pixels, Source
from fedsim.data.datasets.folder import SUFFIXES, image_files, names_below, patients_of
from fedsim.data.folders import by_stem, files_with, subfolders
from fedsim.data.images import fitted, listing, read_opaque, write_images
from fedsim.data.masks import fitted_mask, main_classes, read_white_or_marked, require_size
from fedsim.data.windowed import reader_of, window_key
from fedsim.errors import UserError
from fedsim.machine.cache import cached_folder, load_mapped

#: What the folders of images and of masks are called; the second pair is CVC-ClinicDB's.
FOLDERS = (("images", "masks"), ("Original", "Ground Truth"))
LAYOUT = "<root>/images/<name>.png and <root>/masks/<name>.png, or such folders for each <root>/<site>"


class Pair(NamedTuple):
    """The files of an image and of its mask."""

    image: Path
    mask: Path


def mask_folder(config: DataConfig) -> Source:
    """Read ``root/images/*`` with the masks of the same names in ``root/masks``, or such folders of several sites.

    In a mask all that is not 0 is foreground; of a JPEG, which blurs what it stores, all that is above 127, and one
    without such a pixel beside others is refused. The folders may be called as in CVC-ClinicDB. ``data.patient`` tells
    which images belong together. Splits are drawn at each site.

    UserError for a site without images, an image without its mask and the other way round, two of one name, two sizes,
    transparency, and images of more than 8 bits without ``data.window``.
    """
    base = config.folder
    sites = [base] if _pair_of(base) else [folder for folder in subfolders(base) if _pair_of(folder)]
    if not sites or (base not in sites and len(sites) < len(subfolders(base))):
        odd = next((folder for folder in subfolders(base) if folder not in sites), base)
        raise UserError(str(odd), "no folders of images and masks", LAYOUT)
    pairs = [_pairs(site) for site in sites]
    flat = [pair for own in pairs for pair in own]
    files = [path for pair in flat for path in pair]
    key = [*listing(base, files), config.image_size, config.fit, *window_key(config)]
    folder = cached_folder("mask_folder", key, partial(_prepare, flat, config))
    of_site = np.repeat(np.arange(len(sites)), [len(own) for own in pairs])
    has_sites, names = sites != [base], names_below(base, [pair.image for pair in flat])
    return Source(
        images=load_mapped(folder / "images.npy"),
        labels=np.load(folder / "labels.npy", allow_pickle=False),
        class_names=("background", "foreground"),
        groups=None if config.patient is None else patients_of(config.patient, names),
        sites=of_site if has_sites else None,
        site_names=tuple(site.name for site in sites) if has_sites else (),
        strata=of_site,
        masks=load_mapped(folder / "masks.npy"),
        files=tuple(files),
        file_names=names,
    )


def _pair_of(folder: Path) -> tuple[Path, Path] | None:
    """Return the folders of images and masks in a folder; None where it is no site."""
    for names in FOLDERS:
        images, masks = (folder / name for name in names)
        if images.is_dir() and masks.is_dir():
            return images, masks
    return None


def _pairs(site: Path) -> list[Pair]:
    """Return the images of a site, by name, with their masks."""
    found = _pair_of(site)
    assert found is not None, "only such folders are sites"
    images, masks = by_stem(image_files(found[0])), by_stem(files_with(found[1], SUFFIXES))
    for name in sorted(images.keys() ^ masks.keys()):
        lone, other = (images[name], found[1]) if name in images else (masks[name], found[0])
        what = "mask" if name in images else "image"
        raise UserError(str(lone), f"no {what} of that name", f"{other / name} with one of {', '.join(SUFFIXES)}")
    return [Pair(image, masks[name]) for name, image in images.items()]


def _prepare(pairs: list[Pair], config: DataConfig, folder: Path) -> None:
    """Write images.npy (N, 3, side, side), masks.npy (N, side, side) and labels.npy."""
    side, fit, read = config.image_size, config.fit, reader_of(config.window, read_opaque)
    masks = np.zeros((len(pairs), side, side), np.uint8)

    def produce(index: int) -> Pixels:
        image, mask = read(pairs[index].image), read_white_or_marked(pairs[index].mask)
        require_size(pairs[index].mask, mask.shape[::-1], image.size)
        masks[index] = fitted_mask(mask, side, fit)
        return fitted(image, side, fit)

    write_images(folder / "images.npy", (len(pairs), 3, side, side), produce)
    np.save(folder / "masks.npy", masks)
    np.save(folder / "labels.npy", main_classes(masks, 2))
