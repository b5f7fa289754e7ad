"""What ``launch.py check`` tells of pictures that stand in more than one split.

N images. A split that a data set brings is taken as it is, and one that is drawn knows the groups of the set alone; so
whoever trains on a set should see how much of what it is measured on has been trained on.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from fedsim.data.dataset import Dataset, Indices, Pixels
from fedsim.data.duplicates import near_pairs, thumbnails
from fedsim.data.numbering import counted

#: Of pairs of brain MRI that differ by less than 3 of 255, 99 % are nearer than this.
DISTANCE = 0.06
#: Of one split with another; beyond, an even sample of the first is compared with all of the second.
MOST_PAIRS = 20_000_000
IMAGES_AT_ONCE = 64
PAIRS = (("val", "train"), ("test", "train"), ("test", "val"))


class Overlap(NamedTuple):
    """A row of name and text, and how many held-out images it is about that have one in another split."""

    name: str
    text: str
    num_shared: int


def overlaps(data: Dataset) -> list[Overlap]:
    """Return what is said of near-duplicates, same pixels and groups across the splits, as the set has them.

    A near-duplicate may be turned, mirrored, brighter or compressed again; the same pixels may be turned or mirrored,
    and are compared at ``data.image_size``. Of volumes only the pixels are compared.
    """
    found = [] if data.unit != "images" else [_near(data)]
    if data.texts is None:
        found.append(_same(data))
    return found + group_overlaps(data)


def group_overlaps(data: Dataset) -> list[Overlap]:
    """Return how many held-out images have one of their group in another split, in all and within each site."""
    if data.groups is None:
        return []
    found = [_shared("same groups", data, data.groups)]
    if data.sites is not None:
        found.append(Overlap("same groups, own site", _site_text(data, data.groups, data.sites), 0))
    return found


def _near(data: Dataset) -> Overlap:
    images = data.images.numpy()
    # Where several rows have one picture it is looked at once, and counts for all of them.
    pictures = {name: np.unique(data.pictures_of(part), return_counts=True) for name, part in _parts(data).items()}
    small = {name: _all_thumbnails(images, own) for name, (own, _) in pictures.items()}
    texts, num_shared = [], 0
    for first, second in PAIRS:
        counts = pictures[first][1]
        looked_at = min(len(counts), max(1, MOST_PAIRS // len(small[second])))
        sample = np.linspace(0, len(counts) - 1, looked_at).astype(np.int64)
        pairs = near_pairs(small[first][sample], small[second], DISTANCE)
        near = sum(int(counts[sample[np.unique(found)]].sum()) for found, _ in pairs)
        number = int(counts[sample].sum())
        which = f"{number:,} {first} images" if looked_at == len(counts) else f"a sample of {number:,} {first} images"
        texts.append(f"{near:,} of {which} have one in {second}")
        num_shared += near
    return Overlap("near-duplicates", "; ".join(texts), num_shared)


def _all_thumbnails(images: Pixels, part: Indices) -> Pixels:
    """Return the thumbnails (N, 2, 16, 17) of ``part`` of the images."""
    with ThreadPoolExecutor(min(16, len(os.sched_getaffinity(0)))) as pool:
        made = pool.map(lambda index: thumbnails(Image.fromarray(images[index].transpose(1, 2, 0))), part.tolist())
        return np.stack(list(made))


def _same(data: Dataset) -> Overlap:
    numbers = same_pictures(data.images.numpy())
    pictures = numbers if data.pictures is None else numbers[data.pictures]
    found = _shared("same pixels", data, pictures)
    if data.masks is not None:  # where a label is only the class with most pixels
        return found
    labels = data.labels.numpy()
    labelled = counted(pictures * (labels.max() + 1) + labels)[0] // (labels.max() + 1)
    return found._replace(text=f"{found.text}; {np.count_nonzero(np.bincount(labelled) > 1):,} pictures in two classes")


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


def _shared(name: str, data: Dataset, groups: Indices) -> Overlap:
    parts, texts, num_shared = _parts(data), [], 0
    for first, second in PAIRS:
        number = _num_shared(groups, parts[first], parts[second])
        texts.append(f"{number:,} of {len(parts[first]):,} {first} images have one in {second}")
        num_shared += number
    return Overlap(name, "; ".join(texts), num_shared)


def _site_text(data: Dataset, groups: Indices, sites: Indices) -> str:
    texts = []
    for site, name in enumerate(data.site_names):
        train, val, test = (part[sites[part] == site] for part in (data.train, data.val, data.test))
        in_val, in_test = _num_shared(groups, val, train), _num_shared(groups, test, train)
        texts.append(f"{name} {in_val:,} of {len(val):,} val, {in_test:,} of {len(test):,} test")
    return "; ".join(texts)


def _num_shared(groups: Indices, first: Indices, second: Indices) -> int:
    return int(np.count_nonzero(np.isin(groups[first], groups[second])))


def _parts(data: Dataset) -> dict[str, Indices]:
    return {"train": data.train, "val": data.val, "test": data.test}
