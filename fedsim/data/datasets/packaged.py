"""Image sets that need no download by hand: brain MRI, dermoscopy pairs, digits."""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fedsim.config.data import DataConfig
from fedsim.data.assets import ASSETS, fetch
from fedsim.data.dataset import Pixels, Source
from fedsim.data.duplicates import SIDE, SMALLEST_STEP, near_duplicates, thumbnails
from fedsim.data.images import read_rgb, resized, write_images, write_resized
from fedsim.machine.cache import cached_folder, load_mapped

SITE_BOUNDS = (210, 260, 400, 560)
SITE_NAMES = ("up to 210 px", "211-260 px", "261-400 px", "401-560 px", "over 560 px")
#: The closest slices with and without a tumour are 0.167 apart; at 0.14 the first different heads are joined.
SLICE_DISTANCE = 0.12
PATCHES_PER_LESION = 10


def brain_mri(config: DataConfig) -> Source:
    """3,000 brain MRI slices (Br35H), with or without a tumour.

    Most slices stand there several times: mirrored, turned, brightened, sharpened. Groups are the 347 clusters of such
    copies, none with both classes, the largest of 77 slices; a random split of the slices would leak. Sites are bands
    of the original image's longest side, a stand-in for where a slice was collected.
    """
    folder = fetch("brain_mri")
    paths = sorted(folder.rglob("*.jpg"))
    key = ASSETS["brain_mri"].sha256
    rule = [SIDE, SMALLEST_STEP, SLICE_DISTANCE]
    index = cached_folder("brain_mri-index", [key, "eight orientations", rule], partial(_index_slices, paths))
    pixels = cached_folder(
        "brain_mri-images", [key, config.image_size], partial(write_resized, paths, config.image_size)
    )
    longest = np.load(index / "longest_side.npy", allow_pickle=False)
    labels = np.array([path.parent.name == "yes" for path in paths], np.int64)
    sites = np.searchsorted(SITE_BOUNDS, longest).astype(np.int64)
    return Source(
        images=load_mapped(pixels / "images.npy"),
        labels=labels,
        class_names=("no tumour", "tumour"),
        groups=np.load(index / "groups.npy", allow_pickle=False),
        divisible=True,
        sites=sites,
        site_names=SITE_NAMES,
        strata=2 * sites + labels,
    )


def _index_slices(paths: list[Path], folder: Path) -> None:
    longest, small = [], []
    for path in paths:
        image = read_rgb(path)
        longest.append(max(image.size))
        small.append(thumbnails(image))
    np.save(folder / "longest_side.npy", np.array(longest))
    np.save(folder / "groups.npy", near_duplicates(np.stack(small), SLICE_DISTANCE))


def dermoscopy_pairs(config: DataConfig) -> Source:
    """Pairs of skin patches from 199 dermoscopic images: do they look alike?

    The two patches of a pair are the left and the right half of one image, each stretched to its half (which
    also takes in the five patches that are not 32 x 32). The 59 pairs of pixel-identical patches are dropped:
    they are all "similar" and teach nothing. Groups are the lesions: no pair has a near-copy in another lesion. Of 512
    pairs one patch also stands in a pair of another lesion, as that is how pairs that are not similar were made;
    joined by patches, 122 of the 199 lesions would be one group.
    """
    asset = ASSETS["dermoscopy_pairs"]
    folder = fetch("dermoscopy_pairs")
    prepared = cached_folder(
        "dermoscopy_pairs-images", [asset.sha256, config.image_size], partial(_join_pairs, folder, config.image_size)
    )
    return Source(
        images=load_mapped(prepared / "images.npy"),
        labels=np.load(prepared / "labels.npy", allow_pickle=False),
        class_names=("not similar", "similar"),
        groups=np.load(prepared / "groups.npy", allow_pickle=False),
    )


def _join_pairs(source: Path, side: int, folder: Path) -> None:
    firsts = sorted(source.rglob("*a.bmp"))
    pairs = [(read_rgb(first), read_rgb(first.with_name(first.name[:-5] + "b.bmp"))) for first in firsts]
    kept = [index for index, (left, right) in enumerate(pairs) if left.tobytes() != right.tobytes()]
    numbers = [int(firsts[index].name.removeprefix("patch").removesuffix("a.bmp")) for index in kept]

    def join(index: int) -> Pixels:
        left, right = pairs[kept[index]]
        half = side // 2
        return np.concatenate([resized(left, half, side), resized(right, side - half, side)], axis=2)

    write_images(folder / "images.npy", (len(kept), 3, side, side), join)
    np.save(folder / "groups.npy", np.array(numbers) // PATCHES_PER_LESION)
    np.save(folder / "labels.npy", np.array([firsts[i].parent.name == "Similar" for i in kept], np.int64))


def digits(config: DataConfig) -> Source:
    """1,797 handwritten digits of 8 x 8 pixels and 17 grey levels (scikit-learn): small, for tests."""
    from sklearn.datasets import load_digits  # here, since it costs a second that other sets need not pay

    small, labels = load_digits(return_X_y=True)
    grey = np.rint(small.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.stack([resized(Image.fromarray(image), config.image_size, config.image_size) for image in grey])
    return Source(images=images, labels=labels.astype(np.int64), class_names=tuple(str(digit) for digit in range(10)))
