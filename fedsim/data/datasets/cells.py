"""Cells under the microscope with masks, out of package registries: four sites that look nothing alike.

F frames of a movie, Z planes of a frame, H and W pixels; a tile is 64 x 64 of them.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageSequence

from fedsim.config.data import DataConfig
from fedsim.data.assets import ASSETS, fetch
from fedsim.data.dataset import Indices, Pixels, Source
from fedsim.data.images import resized, write_images
from fedsim.data.masks import resized_mask
from fedsim.data.splits import TEST, TRAIN, VAL
from fedsim.machine.cache import cached_folder, load_mapped

SITE_NAMES = ("HeLa", "bacteria", "CHO", "DSB2018")
TILE = 64
MIN_FOREGROUND = 0.02
# File of the images, file of the instance numbers, planes per frame.
MOVIES = (
    ("Fluo_Hela_02_img.tif", "Fluo_Hela_02_ERR_SEG.tif", 1),
    ("trpL_150310-11_img.tif", "trpL_150310-11_mask.tif", 1),
    ("Fluo-N3DH-CHO_02_img.tif", "Fluo-N3DH-CHO_02_ERR_SEG.tif", 5),
)
VAL_FROM, TEST_FROM = 13, 16  # of a movie's 20 frames
PERCENTILES = (1, 99.8)
UNUSED = -1
Planes = npt.NDArray[np.uint16]


def cells(config: DataConfig) -> Source:
    """4,783 tiles of HeLa nuclei, bacteria, CHO cells and the nuclei of DSB2018: background or cell.

    Tiles are cut from each image's upper left corner on; those of which less than 2 % is foreground are left out, for
    most of a frame is empty. Touching cells become one foreground. The movies' first 13 frames are for training, the
    next 3 for validation, the last 4 for the test: whole stretches of time, as consecutive frames are nearly equal.
    They still show one field of view, so a test frame has cells that were trained on, later: 51 of 1,075 test tiles and
    45 of 741 validation tiles, nearly empty ones of HeLa, differ by less than 3 of 255 from a training tile, none by
    less than 1. DSB2018 is one field; of its 8 x 8 tiles a column and part of a row are left out, so that tiles of two
    splits do not touch.

    Masks of HeLa and CHO are computed by a tracker, not drawn by hand. Strata are the sites.
    """
    archives = [ASSETS[name].sha256 for name in ("cell_movies", "dsb2018_nuclei")]
    folder = cached_folder("cells", [archives, config.image_size], partial(_prepare, config.image_size))
    sites = np.load(folder / "sites.npy", allow_pickle=False)
    return Source(
        images=load_mapped(folder / "images.npy"),
        labels=np.ones(len(sites), np.int64),  # every tile that is kept has some foreground
        class_names=("background", "cell"),
        sites=sites,
        site_names=SITE_NAMES,
        fixed=np.load(folder / "fixed.npy", allow_pickle=False),
        strata=sites,
        masks=load_mapped(folder / "masks.npy"),
    )


def _prepare(side: int, folder: Path) -> None:
    """Write images.npy (N, 1, side, side), masks.npy (N, side, side), sites.npy and fixed.npy."""
    tiles, masks, sites, fixed = [], [], [], []
    for site, planes, instances, splits in _fields():
        grey, foreground = _cut(_scaled(planes)), _cut((instances > 0).astype(np.uint8))
        kept = (splits != UNUSED) & (foreground.mean((-2, -1)) >= MIN_FOREGROUND)
        tiles.append(grey[kept])
        masks.append(foreground[kept])
        fixed.append(np.broadcast_to(splits, kept.shape)[kept])
        sites.append(np.full(kept.sum(), site, np.int64))
    flat_tiles, flat_masks = np.concatenate(tiles), np.concatenate(masks)
    write_images(
        folder / "images.npy",
        (len(flat_tiles), 1, side, side),
        lambda index: resized(Image.fromarray(flat_tiles[index]), side, side),
    )
    np.save(folder / "masks.npy", np.stack([resized_mask(mask, side, side) for mask in flat_masks]))
    np.save(folder / "sites.npy", np.concatenate(sites))
    np.save(folder / "fixed.npy", np.concatenate(fixed))


def _fields() -> Iterator[tuple[int, Planes, Planes, Indices]]:
    """Yield of each frame the site, image and instance numbers (Z, H, W), and the split by row and column of tiles."""
    movies, still = fetch("cell_movies"), fetch("dsb2018_nuclei")
    for site, (image_file, mask_file, num_planes) in enumerate(MOVIES):
        images, instances = (_read_pages(movies / file) for file in (image_file, mask_file))
        for frame, first in enumerate(range(0, len(images), num_planes)):
            split = TRAIN if frame < VAL_FROM else VAL if frame < TEST_FROM else TEST
            planes = slice(first, first + num_planes)
            yield site, images[planes], instances[planes], np.array([[split]])
    splits = np.full((8, 8), UNUSED)
    splits[:, :4], splits[:3, 5:], splits[4:, 5:] = TRAIN, VAL, TEST
    yield len(MOVIES), _read_pages(still / "img2d.tif"), _read_pages(still / "mask2d.tif"), splits


def _read_pages(path: Path) -> Planes:
    """Return all pages of a TIFF file as (pages, H, W)."""
    with Image.open(path, formats=["TIFF"]) as image:
        return np.stack([np.asarray(page, np.uint16) for page in ImageSequence.Iterator(image)])


def _scaled(planes: Planes) -> Pixels:
    """Map the 1st to the 99.8th percentile of a frame to 0..255.

    Cameras differ in offset and gain, and cells bleach: with the bounds of 16 bits, HeLa would have 15 grey levels.
    Bounds of a movie's frame need no frame of another split. Planes share theirs, as what is out of focus is dark.
    """
    low, high = np.percentile(planes, PERCENTILES)
    grey: Pixels = np.rint((planes.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)
    return grey


def _cut(planes: Pixels) -> Pixels:
    """Return the tiles of ``planes`` (Z, H, W) as (Z, rows, columns, TILE, TILE), without the rest at the border."""
    num_planes, rows, columns = planes.shape[0], planes.shape[1] // TILE, planes.shape[2] // TILE
    whole = planes[:, : rows * TILE, : columns * TILE]
    return whole.reshape(num_planes, rows, TILE, columns, TILE).swapaxes(2, 3)
