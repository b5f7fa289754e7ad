"""Images and masks in folders per site, such as HarmoFL's six sites of histology with nuclei."""

from functools import partial
from pathlib import Path

import numpy as np

from fedsim.data.cache import cached_folder, load_mapped
from fedsim.data.dataset import Pixels, Source
from fedsim.data.datasets.folder import image_files, site_folders
from fedsim.data.images import listing, read_opaque, resized, write_images
from fedsim.data.masks import main_classes, read_foreground, require_size, resized_mask
from fedsim.errors import UserError

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
LAYOUT = "<root>/<site>/images/<name>.png and <root>/<site>/masks/<name>.png"
Pair = tuple[Path, Path]


def nuclei(root: str, image_size: int) -> Source:
    """Read ``root/<site>/images/*`` with the masks of the same names, whatever their suffix, in ``root/<site>/masks``.

    Every folder of ``root`` is a site. In a mask all that is not 0 is a nucleus, so numbered nuclei do as well;
    masks are png, tif or bmp, as jpg would blur them. The split is drawn at each site; nothing is known about
    which images belong together. UserError for a site without images, an image without its mask and the other way
    round, two sizes, transparency, and images of more than 8 bits.
    """
    base = Path(root).expanduser()
    sites = site_folders(base, LAYOUT)
    pairs = [_pairs(site) for site in sites]
    flat = [pair for own in pairs for pair in own]
    key = [*listing(base, [path for pair in flat for path in pair]), image_size]
    folder = cached_folder("nuclei", key, partial(_prepare, flat, image_size))
    of_site = np.repeat(np.arange(len(sites)), [len(own) for own in pairs])
    return Source(
        images=load_mapped(folder / "images.npy"),
        labels=np.load(folder / "labels.npy", allow_pickle=False),
        class_names=("background", "nucleus"),
        sites=of_site,
        site_names=tuple(site.name for site in sites),
        strata=of_site,
        masks=load_mapped(folder / "masks.npy"),
        files=tuple(path for pair in flat for path in pair),
    )


def _pairs(site: Path) -> list[Pair]:
    """Return the images of a site, by name, with their masks."""
    for folder in (site / "images", site / "masks"):
        if not folder.is_dir():
            raise UserError(str(folder), "no such folder", LAYOUT)
    images = image_files(site / "images")
    masks = {path.stem: path for path in (site / "masks").iterdir() if path.suffix.lower() in MASK_SUFFIXES}
    for image in images:
        if image.stem not in masks:
            expected = f"{site / 'masks' / image.stem} with one of {', '.join(MASK_SUFFIXES)}"
            raise UserError(str(image), "no mask of that name", expected)
    lone = min(masks.keys() - {image.stem for image in images}, default=None)
    if lone is not None:
        raise UserError(str(masks[lone]), "no image of that name", f"one in {site / 'images'}")
    return [(image, masks[image.stem]) for image in images]


def _prepare(pairs: list[Pair], side: int, folder: Path) -> None:
    """Write images.npy (N, 3, side, side), masks.npy (N, side, side) and labels.npy."""
    masks = np.zeros((len(pairs), side, side), np.uint8)

    def produce(index: int) -> Pixels:
        image, mask = read_opaque(pairs[index][0]), read_foreground(pairs[index][1])
        require_size(pairs[index][1], mask.shape[::-1], image.size)
        masks[index] = resized_mask(mask, side, side)
        return resized(image, side, side)

    write_images(folder / "images.npy", (len(pairs), 3, side, side), produce)
    np.save(folder / "masks.npy", masks)
    np.save(folder / "labels.npy", main_classes(masks, 2))
