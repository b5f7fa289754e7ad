"""Each client's own validation and test images.

K clients. What the data set holds out is divided as its training images are: nobody gets images of a stratum of
which it trains on none. Whoever brings a partition brings its held-out images too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsim.config.data import ClientsConfig
from fedsim.data.dataset import Dataset, Indices
from fedsim.data.partition_file import read_partition
from fedsim.seeding import numpy_stream


def divide_held_out(
    dataset: Dataset, config: ClientsConfig, parts: Sequence[Indices], seed: int
) -> Mapping[str, list[Indices]]:
    """Return ``{"val": [...], "test": [...]}``: per client sorted indices into ``dataset.images``.

    With the ``sites`` partition a client's images are its site's, shared by the clients of one site in proportion
    to their training images. With any other, every class is divided in proportion to the clients' training images
    ``parts`` of it. No image goes to two clients; a client with few training images may get none. A ``file`` says whose
    they are: nobody could deal out a hospital's images by class. A split that it leaves out is not in the result.
    """
    words: Any = config.partition
    if words.name == "file":
        brought = read_partition(words.path, dataset, config.count)
        return {name: list(map(np.sort, brought[name])) for name in ("val", "test") if name in brought}
    by_site = config.partition.name == "sites"
    strata = dataset.sites if by_site else dataset.labels.numpy()
    assert strata is not None, "partition_clients refuses sites where there are none"
    num_strata = int(strata.max()) + 1
    counts_KS = np.stack([np.bincount(strata[part], minlength=num_strata) for part in parts])
    return {
        name: _divide(places, strata[places], counts_KS, numpy_stream(seed, f"data.held_out/{name}"))
        for name, places in (("val", dataset.val), ("test", dataset.test))
    }


def _divide(places: Indices, strata: Indices, counts_KS: Indices, stream: np.random.Generator) -> list[Indices]:
    """Deal out ``places`` (N,) stratum by stratum, in proportion to the columns of ``counts_KS``."""
    pieces: list[list[Indices]] = [[places[:0]] for _ in counts_KS]
    for stratum, counts_K in enumerate(counts_KS.T):
        members = stream.permutation(places[strata == stratum])
        if counts_K.sum() == 0:
            continue
        # Rounded together, so that the sizes add up to all members.
        ends = np.rint(counts_K.cumsum() / counts_K.sum() * len(members)).astype(np.int64)
        for own, piece in zip(pieces, np.split(members, ends[:-1]), strict=True):
            own.append(piece)
    return [np.sort(np.concatenate(own)) for own in pieces]
