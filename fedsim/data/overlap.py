"""What ``launch.py check`` tells of pictures that stand in more than one split.

N images. A split that a data set brings is taken as it is, and one that is drawn knows the groups of the set alone; so
whoever trains on a set should see how much of what it is measured on has been trained on.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from fedsim.data.dataset import Dataset, Indices, Pixels
from fedsim.data.duplicates import near_pairs, thumbnails

#: Of pairs of brain MRI that differ by less than 3 of 255, 99 % are nearer than this.
DISTANCE = 0.06
#: Of one split with another; beyond, an even sample of the first is compared with all of the second.
MOST_PAIRS = 20_000_000
IMAGES_AT_ONCE = 64


def overlap_rows(data: Dataset) -> list[tuple[str, str]]:
    """Return rows of name and text: near-duplicates, same pixels and groups across the splits, as the set has them.

    A near-duplicate may be turned, mirrored, brighter or compressed again; the same pixels may be turned or mirrored,
    and are compared at ``data.image_size``. Of volumes only the pixels are compared.
    """
    rows = [] if data.unit != "images" else [("near-duplicates", _near_text(data))]
    if data.texts is None:
        rows.append(("same pixels", _same_text(data)))
    return rows + group_rows(data)


def group_rows(data: Dataset) -> list[tuple[str, str]]:
    """Return how many held-out images have one of their group in another split, in all and within each site."""
    if data.groups is None:
        return []
    rows = [("same groups", _shared_text(data, data.groups))]
    if data.sites is not None:
        rows.append(("same groups, own site", _site_text(data, data.groups, data.sites)))
    return rows


def _near_text(data: Dataset) -> str:
    images = data.images.numpy()
    small = {name: _all_thumbnails(images, part) for name, part in _parts(data).items()}
    texts = []
    for first, second in (("val", "train"), ("test", "train"), ("test", "val")):
        total = len(small[first])
        looked_at = min(total, max(1, MOST_PAIRS // len(small[second])))
        sample = small[first][np.linspace(0, total - 1, looked_at).astype(np.int64)]
        near = sum(len(np.unique(found)) for found, _ in near_pairs(sample, small[second], DISTANCE))
        which = f"{looked_at:,} {first} images" if looked_at == total else f"a sample of {looked_at:,} {first} images"
        texts.append(f"{near:,} of {which} have one in {second}")
    return "; ".join(texts)


def _all_thumbnails(images: Pixels, part: Indices) -> Pixels:
    """Return the thumbnails (N, 2, 16, 17) of ``part`` of the images."""
    with ThreadPoolExecutor(min(16, len(os.sched_getaffinity(0)))) as pool:
        made = pool.map(lambda index: thumbnails(Image.fromarray(images[index].transpose(1, 2, 0))), part.tolist())
        return np.stack(list(made))


def _same_text(data: Dataset) -> str:
    pictures = same_pictures(data.images.numpy())
    text = _shared_text(data, pictures)
    if data.masks is not None:  # where a label is only the class with most pixels
        return text
    labelled = np.unique(np.stack([pictures, data.labels.numpy()]), axis=1)[0]
    return f"{text}; {np.count_nonzero(np.bincount(labelled) > 1):,} pictures in two classes"


def same_pictures(images: Pixels) -> Indices:
    """Number the images (N, C, H, H), or volumes (N, S, C, H, H), from 0: (N,).

    Those of the same pixels, in any of eight orientations, get one number.
    """
    # What no orientation changes tells nearly all images apart, without turning any.
    sums = np.concatenate([_sums(images[at : at + IMAGES_AT_ONCE]) for at in range(0, len(images), IMAGES_AT_ONCE)])
    _, numbers, counts = np.unique(sums, axis=0, return_inverse=True, return_counts=True)
    numbers = numbers.reshape(-1)
    known: dict[bytes, int] = {}
    for index in np.flatnonzero(counts[numbers] > 1).tolist():
        numbers[index] = known.setdefault(_digest(images[index]), len(images) + index)
    return np.unique(numbers, return_inverse=True)[1].reshape(-1)


def _sums(images: Pixels) -> Indices:
    axes = tuple(range(1, images.ndim))
    return np.stack([images.sum(axes, np.int64), np.square(images, dtype=np.int32).sum(axes, np.int64)], 1)


def _digest(image: Pixels) -> bytes:
    """Return what is the same for all orientations of an image (..., H, H), and for no other image."""
    mirrored = (image, image[..., ::-1])
    return min(
        hashlib.sha256(np.rot90(one, turns, (-2, -1)).tobytes()).digest() for one in mirrored for turns in range(4)
    )


def _shared_text(data: Dataset, groups: Indices) -> str:
    parts = _parts(data)
    return "; ".join(
        f"{_num_shared(groups, parts[first], parts[second])} {first} images have one in {second}"
        for first, second in (("val", "train"), ("test", "train"), ("test", "val"))
    )


def _site_text(data: Dataset, groups: Indices, sites: Indices) -> str:
    texts = []
    for site, name in enumerate(data.site_names):
        train, val, test = (part[sites[part] == site] for part in (data.train, data.val, data.test))
        texts.append(f"{name} {_num_shared(groups, val, train)} val, {_num_shared(groups, test, train)} test")
    return "; ".join(texts)


def _num_shared(groups: Indices, first: Indices, second: Indices) -> str:
    return f"{np.count_nonzero(np.isin(groups[first], groups[second])):,} of {len(first):,}"


def _parts(data: Dataset) -> dict[str, Indices]:
    return {"train": data.train, "val": data.val, "test": data.test}
