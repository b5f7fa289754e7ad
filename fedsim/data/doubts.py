"""What ``launch.py check`` warns of: clients that hold little or nothing, and images that two sides have.

K clients, N images, C classes.
"""

from collections.abc import Sequence

import numpy as np

from fedsim.data.client_images import ClientImages
from fedsim.data.dataset import Dataset, Indices
from fedsim.data.numbering import counted, places_among
from fedsim.data.overlap import Overlap
from fedsim.data.whole_groups import has_whole_groups

NAMED = 10


def doubts(data: Dataset, parts: Sequence[Indices], found: Sequence[Overlap]) -> list[str]:
    """Return a line for each thing that a reader of the results would ask about, none where all is well.

    ``parts`` (K): the clients' training images; ``found``: what is said of images in several splits.
    """
    lines = []
    owned = ClientImages.of(parts)
    lines += _clients(np.asarray(owned.sizes) == 0, f"no training {data.unit[:-1]}")
    if data.targets is None and data.masks is None and len(data.class_names) > 1:
        lines += _clients(_num_classes(data, owned) == 1, f"training {data.unit} of one class alone")
    for one in found:
        if one.num_shared:
            lines.append(f"{one.name}: {one.num_shared:,} held-out {data.unit} have one in another split")
    if has_whole_groups(data) and (number := _shared_groups(data, owned)):
        lines.append(f"same groups: {number:,} with training {data.unit} at several clients")
    return lines


def _clients(chosen: np.ndarray, what: str) -> list[str]:
    """Return a line that names the clients of which something holds."""
    numbers = np.flatnonzero(chosen)
    if not len(numbers):
        return []
    more = " ..." if len(numbers) > NAMED else ""
    verb = "has" if len(numbers) == 1 else "have"
    named = ", ".join(map(str, numbers[:NAMED].tolist()))
    return [f"{len(numbers):,} of {len(chosen):,} clients {verb} {what}: {named}{more}"]


def _num_classes(data: Dataset, owned: ClientImages) -> np.ndarray:
    """Return how many classes each client has images of, (K,)."""
    width = len(data.label_names)
    pairs, _ = counted(owned.owners() * width + data.labels.numpy()[owned.images])
    return np.bincount(pairs // width, minlength=len(owned))


def _shared_groups(data: Dataset, owned: ClientImages) -> int:
    """Return how many groups have images at more than one client."""
    assert data.groups is not None, "has_whole_groups says so"
    groups = places_among(data.groups[owned.images])
    pairs, _ = counted(groups * len(owned) + owned.owners())
    return int(np.count_nonzero(np.bincount(pairs // len(owned)) > 1))
