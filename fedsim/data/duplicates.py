"""Telling near-duplicates: one picture upright, turned or mirrored, brighter, sharper or compressed again.

N images, P pairs of them. A thumbnail has 16 rows of 17 cells. What is compared is where it gets brighter and where
darker from left to right (a difference hash, but with the places of no step told apart: a black background would
otherwise count as 200 bits of noise).
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedsim.data.dataset import Indices, Pixels

SIDE = 16
#: Of 255. A smaller step is none: that much comes from compressing a flat background.
SMALLEST_STEP = 2
ROWS_AT_ONCE = 128


def thumbnails(image: Image.Image) -> Pixels:
    """Return (2, 16, 17): the image made grey and small, and the same of its transpose.

    All eight orientations (four turns, each also mirrored) follow from these two by turning rows and columns round.
    """
    grey = image.convert("L")
    upright = grey.resize((SIDE + 1, SIDE), Image.Resampling.BILINEAR)
    lying = grey.resize((SIDE, SIDE + 1), Image.Resampling.BILINEAR)
    return np.stack([np.asarray(upright), np.asarray(lying).T])


def oriented(small: Pixels) -> Pixels:
    """Return the thumbnails (N, 2, 16, 17) in all orientations: (N, 8, 16, 17), the upright ones first."""
    return np.concatenate([small[:, :, ::down, ::right] for down in (1, -1) for right in (1, -1)], 1)


def near_pairs(first: Pixels, second: Pixels, distance: float) -> Iterator[tuple[Indices, Indices]]:
    """Yield the pairs (P,), (P,) of an image of ``first`` and one of ``second`` that are near-duplicates.

    Both are thumbnails (N, 2, 16, 17). The distance of two images is the share of their steps that the other does not
    have: 0 for equal steps, 1 for none in common; of the eight orientations of the first the nearest counts. The
    indices of ``first`` ascend from pair to pair and from yield to yield.
    """
    steps = _steps(second[:, 0])
    counts = steps.sum(1)
    for start in range(0, len(first), ROWS_AT_ONCE):
        rows = first[start : start + ROWS_AT_ONCE]
        near = np.zeros((len(rows), len(second)), np.bool_)
        for turned in oriented(rows).swapaxes(0, 1):
            own = _steps(turned)
            near |= 2 * (own @ steps.T) >= (1 - distance) * (own.sum(1)[:, None] + counts)
        found, others = np.nonzero(near)
        yield found + start, others


def _steps(small: Pixels) -> npt.NDArray[np.float32]:
    """Return (N, 512) of 0 and 1: which of 256 places get brighter, and which darker, from left to right."""
    change = np.diff(small.astype(np.int16), axis=2)
    return np.stack([change >= SMALLEST_STEP, change <= -SMALLEST_STEP], 1).reshape(len(small), -1).astype(np.float32)


def near_duplicates(small: Pixels, distance: float) -> Indices:
    """Number the clusters (N,) of images with thumbnails (N, 2, 16, 17) that are near-duplicates, or are so chained."""
    # Late: few runs need it, and it takes 10 MiB.
    from scipy.sparse import coo_array  # type: ignore[import-untyped]  # scipy has no types
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]  # as above

    rows, columns = (np.concatenate(part) for part in zip(*near_pairs(small, small, distance), strict=True))
    links = coo_array((np.ones(len(rows), np.bool_), (rows, columns)), shape=(len(small), len(small)))
    _, clusters = connected_components(links, directed=False)
    return np.asarray(clusters, np.int64)
