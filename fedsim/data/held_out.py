"""Each client's own validation and test images.

K clients. What the data set holds out is divided as its training images are: nobody gets images of a stratum of
which it trains on none. Whoever brings a partition brings its held-out images too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsim.config.data import ClientsConfig
from fedsim.data.client_images import ClientImages
from fedsim.data.dataset import Dataset, Indices
from fedsim.data.partition_file import read_held_out
from fedsim.seeding import numpy_stream


def divide_held_out(
    dataset: Dataset, config: ClientsConfig, parts: Sequence[Indices], seed: int
) -> Mapping[str, ClientImages]:
    """Return ``{"val": [...], "test": [...]}``: per client sorted indices into ``dataset.images``.

    Where sites are known, a client's images are of the sites that it trains on: with the ``sites`` partition all of its
    site, shared by the clients of one site in proportion to their training images; with a drawn one, of each class
    of each site in proportion to the clients' training images ``parts`` of it. Without sites every class is divided so.
    With ``column`` they are those that the column says. No image goes to two clients; a client with few training
    images may get none. A ``file`` says whose they are: nobody could deal out a hospital's images by class. A split
    that it leaves out is divided by sites, where they are known, or else not in the result.
    """
    words: Any = config.partition
    found: dict[str, ClientImages] = {}
    if words.name == "file":
        found = {name: ClientImages.of(parts) for name, parts in read_held_out(words.path, dataset).items()}
    strata = _strata(dataset, words.name)
    if strata is None or len(found) == 2:
        return found
    trained = ClientImages.of(parts)
    return found | {
        name: _divide(places, strata, trained, numpy_stream(seed, f"data.held_out/{name}"))
        for name, places in (("val", dataset.val), ("test", dataset.test))
        if name not in found
    }


def _strata(dataset: Dataset, partition: str) -> Indices | None:
    """Return the strata (N,) within which held-out images follow the training images; None for a file without sites."""
    labels: Indices = dataset.labels.numpy()
    if partition == "column":
        return dataset.owners
    if dataset.sites is None:
        return None if partition == "file" else labels
    return dataset.sites if partition in ("sites", "file") else dataset.sites * (labels.max() + 1) + labels


def _divide(places: Indices, strata: Indices, trained: ClientImages, stream: np.random.Generator) -> ClientImages:
    """Deal out ``places`` stratum by stratum, in proportion to the images of it that clients have ``trained`` on."""
    num_clients, num_strata = len(trained), int(strata.max()) + 1
    by_stratum, bounds = _sorted(strata[places], num_strata)
    training, training_bounds = _sorted(strata[trained.images], num_strata)
    trainers = trained.owners()[training]
    owners = np.full(len(places), num_clients)
    for stratum in range(num_strata):
        members = stream.permutation(by_stratum[bounds[stratum] : bounds[stratum + 1]])
        own = trainers[training_bounds[stratum] : training_bounds[stratum + 1]]
        if not len(own):
            continue
        # Rounded together, so that the sizes add up to all members.
        counts_K = np.bincount(own, minlength=num_clients)
        ends = np.rint(counts_K.cumsum() / len(own) * len(members)).astype(np.int64)
        owners[members] = np.repeat(np.arange(num_clients), np.diff(ends, prepend=0))
    is_owned = owners < num_clients
    return ClientImages.owned(places[is_owned], owners[is_owned], num_clients)


def _sorted(strata: Indices, num_strata: int) -> tuple[Indices, Indices]:
    """Return the order that puts equal strata side by side, and where each begins in it, and the last ends."""
    order = np.argsort(strata, kind="stable")
    return order, np.searchsorted(strata[order], np.arange(num_strata + 1))
