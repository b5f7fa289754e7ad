"""Images and masks in folders per site, such as HarmoFL's six sites of histology with nuclei."""

from functools import partial
from pathlib import Path

import numpy as np

from fedsim.config.data import DataConfig
from fedsim.data.dataset import Pixels, Source
from fedsim.data.datasets.folder import SUFFIXES, image_files, names_below, site_folders
from fedsim.data.folders import by_stem, files_with, subfolders
from fedsim.data.images import listing, read_opaque, resized, write_images
from fedsim.data.masks import main_classes, read_foreground, require_size, resized_mask
from fedsim.errors import UserError
from fedsim.machine.cache import cached_folder, load_mapped

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
LAYOUT = "<root>/<site>/images/<name>.png and <root>/<site>/masks/<name>.png"
PUBLISHED = "<name>/images/<name>.png and <name>/masks/*.png, a file for each of its nuclei"
Pair = tuple[Path, tuple[Path, ...]]  # an image and the masks that make up its own


def nuclei(config: DataConfig) -> Source:
    """Read ``root/<site>/images/*`` with the masks of the same names, whatever their suffix, in ``root/<site>/masks``.

    Every folder of ``root`` is a site. In a mask all that is not 0 is a nucleus, so numbered nuclei do as well;
    masks are png, tif or bmp, as jpg would blur them. The split is drawn at each site; nothing is known about
    which images belong together.

    DSB2018 as published, a folder for each image with a mask file for each nucleus, is taken as well: in ``root``, as
    a set without sites, or in ``root/<site>``. An image's mask is then all its nuclei together.

    UserError for a site without images, an image without its mask and the other way round, two of one name, two sizes,
    transparency, and images of more than 8 bits.
    """
    base = config.folder
    folders = site_folders(base, LAYOUT)
    has_sites = not any(_is_published(folder) for folder in folders)
    sites = folders if has_sites else [base]
    pairs = [_pairs(site) for site in sites]
    flat = [pair for own in pairs for pair in own]
    files = [path for image, masks in flat for path in (image, *masks)]
    key = [*listing(base, files), config.image_size]
    folder = cached_folder("nuclei", key, partial(_prepare, flat, config.image_size))
    of_site = np.repeat(np.arange(len(sites)), [len(own) for own in pairs])
    return Source(
        images=load_mapped(folder / "images.npy"),
        labels=np.load(folder / "labels.npy", allow_pickle=False),
        class_names=("background", "nucleus"),
        sites=of_site if has_sites else None,
        site_names=tuple(site.name for site in sites) if has_sites else (),
        strata=of_site,
        masks=load_mapped(folder / "masks.npy"),
        files=tuple(files),
        file_names=names_below(base, [image for image, _ in flat]),
    )


def _is_published(folder: Path) -> bool:
    """Whether a folder is one image of DSB2018, and no site: its image has the folder's name, its mask has not."""
    if not (folder / "images").is_dir():
        return False
    names = [path.stem for path in files_with(folder / "images", SUFFIXES)]
    masks = files_with(folder / "masks", MASK_SUFFIXES) if (folder / "masks").is_dir() else []
    return names == [folder.name] and folder.name not in [path.stem for path in masks]


def _pairs(site: Path) -> list[Pair]:
    """Return the images of a site, by name, with their masks."""
    folders = subfolders(site)
    if not (site / "images").is_dir() and any((folder / "images").is_dir() for folder in folders):
        return [_published(folder) for folder in folders]
    for folder in (site / "images", site / "masks"):
        if not folder.is_dir():
            raise UserError(str(folder), "no such folder", LAYOUT)
    images = by_stem(image_files(site / "images"))
    masks = by_stem(files_with(site / "masks", MASK_SUFFIXES))
    for name, image in images.items():
        if name not in masks:
            expected = f"{site / 'masks' / name} with one of {', '.join(MASK_SUFFIXES)}"
            raise UserError(str(image), "no mask of that name", expected)
    lone = min(masks.keys() - images.keys(), default=None)
    if lone is not None:
        raise UserError(str(masks[lone]), "no image of that name", f"one in {site / 'images'}")
    return [(image, (masks[name],)) for name, image in images.items()]


def _published(folder: Path) -> Pair:
    """Return the image of one of DSB2018's folders with the masks of its nuclei."""
    for inner in (folder / "images", folder / "masks"):
        if not inner.is_dir():
            raise UserError(str(inner), "no such folder", PUBLISHED)
    images, masks = image_files(folder / "images"), files_with(folder / "masks", MASK_SUFFIXES)
    if len(images) != 1 or not masks:
        raise UserError(str(folder), f"{len(images)} images and {len(masks)} masks", PUBLISHED)
    return images[0], tuple(masks)


def _prepare(pairs: list[Pair], side: int, folder: Path) -> None:
    """Write images.npy (N, 3, side, side), masks.npy (N, side, side) and labels.npy."""
    masks = np.zeros((len(pairs), side, side), np.uint8)

    def produce(index: int) -> Pixels:
        image = read_opaque(pairs[index][0])
        nuclei_of_it = np.zeros(image.size[::-1], np.uint8)
        for path in pairs[index][1]:
            nucleus = read_foreground(path)
            require_size(path, nucleus.shape[::-1], image.size)
            nuclei_of_it |= nucleus
        masks[index] = resized_mask(nuclei_of_it, side, side)
        return resized(image, side, side)

    write_images(folder / "images.npy", (len(pairs), 3, side, side), produce)
    np.save(folder / "masks.npy", masks)
    np.save(folder / "labels.npy", main_classes(masks, 2))
