"""Dividing the training images among the clients.

K clients, N images, C classes. The same seed gives every client the same images in the same order. Nothing here holds
an array or a list for each client: there may be a million.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.config.data import ClientsConfig
from fedsim.data.client_images import ClientImages, even
from fedsim.data.dataset import Dataset, Indices
from fedsim.data.partition_file import read_partition
from fedsim.data.splits import training_by_site
from fedsim.data.whole_groups import by_whole_groups, has_whole_groups
from fedsim.errors import UserError
from fedsim.seeding import derive

MAX_DRAWS = 1000


def partition_clients(dataset: Dataset, config: ClientsConfig, seed: int) -> ClientImages:
    """Return for each of ``config.count`` clients its indices into ``dataset.images``, all out of ``train``.

    Only a Dirichlet partition with ``min_size: 0``, a diversity partition with fewer images of a class than clients
    that have it, and a file can leave a client without images. What is drawn keeps groups whole that are not
    ``divisible``: see ``whole_groups``. UserError where there are too few images, no natural sites, a class that nobody
    has, or a file that does not fit.
    """
    stream = np.random.RandomState(derive(seed, "data.partition") % 2**32)
    name = config.partition.name
    if name in BROUGHT or not has_whole_groups(dataset):
        return PARTITIONS[name](dataset, config, stream)
    return by_whole_groups(dataset, lambda heads: PARTITIONS[name](heads, config, stream), by_site=name == "sites")


def without_small(parts: Sequence[Indices], min_samples: int | None) -> ClientImages:
    """Take the images of clients that have fewer than ``min_samples``; UserError where no client has as many."""
    owned = ClientImages.of(parts)
    sizes = np.asarray(owned.sizes)
    fewest, largest = min_samples or 0, sizes.max()
    if largest < fewest:
        raise UserError("clients.min_samples", str(fewest), f"at most {largest}, the images of the largest client")
    return owned if min_samples is None else owned.where(sizes >= fewest)


def _iid(dataset: Dataset, config: ClientsConfig, stream: np.random.RandomState) -> ClientImages:
    """Images dealt out at random; sizes differ by one at most."""
    _require(dataset, config.count, "clients.count")
    return ClientImages(stream.permutation(dataset.train), even(len(dataset.train), config.count))


def _dirichlet(dataset: Dataset, config: ClientsConfig, stream: np.random.RandomState) -> ClientImages:
    """Label skew; drawn again from the same stream until every client has ``min_size`` images."""
    words: Any = config.partition
    labels = dataset.labels.numpy()[dataset.train]
    _require(dataset, config.count * words.min_size, "clients.count * clients.partition.min_size")
    for _ in range(MAX_DRAWS):
        parts = dirichlet(labels, words.alpha, len(dataset.label_names), config.count, stream, words.form)
        if min(parts.sizes) >= words.min_size:
            return ClientImages(dataset.train[parts.images], np.asarray(parts.sizes))
    raise UserError(
        "clients.partition.min_size",
        f"{words.min_size}, which {MAX_DRAWS} draws with alpha {words.alpha:g} did not meet",
        f"a smaller min_size, a larger alpha, or fewer than {config.count} clients",
    )


def dirichlet(
    labels: Indices,
    alpha: float,
    num_classes: int,
    num_clients: int,
    stream: np.random.RandomState,
    form: str = "released",
) -> ClientImages:
    """Divide each class among the clients by a draw from Dir(alpha, ..., alpha).

    ``labels`` (N,) -> for each client positions in ``labels``, in random order; a client may get nothing. Draws, in
    this order: a shuffle of every class, where all classes are cut, a shuffle of every client. (Hsu et al., arXiv
    1909.06335, name the scheme.) ``form`` says how shares become counts: ``paper_cuts`` or ``released_cuts``, which
    has its own UserError.
    """
    by_class = [np.flatnonzero(labels == label) for label in range(num_classes)]
    for members in by_class:
        stream.shuffle(members)
    sizes_C = np.array([len(members) for members in by_class])
    cuts = DIRICHLET_FORMS[form](sizes_C, alpha, num_clients, stream)
    # Cuts beyond the last image leave nothing to those behind.
    pieces = (np.diff(np.minimum(own, n), prepend=0, append=n) for own, n in zip(cuts, sizes_C, strict=True))
    owners = np.concatenate([np.repeat(np.arange(num_clients), sizes_K) for sizes_K in pieces])
    parts = ClientImages.owned(np.concatenate(by_class), owners, num_clients)
    for client in np.flatnonzero(np.asarray(parts.sizes) > 1).tolist():  # one image alone draws nothing
        stream.shuffle(parts[client])
    return parts


def paper_cuts(sizes_C: Indices, alpha: float, num_clients: int, stream: np.random.RandomState) -> Indices:
    """Draw where each class is cut into pieces, (C, K - 1), so that every count's expectation is n * share.

    Cuts lie at floor(n * (share of this client and all before it) + u), with one u from [0, 1) for a class:
    counts are n * share rounded up or down, and the floor of x + u is x in the mean. Without u the cuts of all
    classes would fall at the same clients where shares are nearly equal. Gammas of a small alpha underflow, so the
    shares are made of their logarithms: log G(alpha) = log G(alpha + 1) + log(U) / alpha.
    """
    shape = (len(sizes_C), num_clients)
    # In place where it can be: for a million clients and ten classes each array takes 80 MB.
    logs_CK = stream.standard_gamma(alpha + 1, shape)
    np.log(logs_CK, out=logs_CK)
    logs_CK -= stream.standard_exponential(shape) / alpha
    logs_CK -= logs_CK.max(1, keepdims=True)
    shares_CK = np.exp(logs_CK, out=logs_CK)
    shares_CK /= shares_CK.sum(1, keepdims=True)
    cuts_CK = np.cumsum(shares_CK, axis=1, out=shares_CK)
    cuts_CK *= sizes_C[:, None]
    cuts_CK += stream.uniform(size=(len(sizes_C), 1))
    ends_CK: Indices = np.floor(cuts_CK, out=cuts_CK)[:, :-1].astype(np.int64)
    return ends_CK


def released_cuts(sizes_C: Indices, alpha: float, num_clients: int, stream: np.random.RandomState) -> Indices:
    """Draw the same as DEeR's release does: each count is rounded by itself, and the last client takes the rest.

    UserError where the draw underflows: a class without shares would go to the last client.
    """
    shares_CK = stream.dirichlet(np.full(num_clients, alpha), len(sizes_C))
    if not np.isfinite(shares_CK).all():
        found = f"{alpha:g}, whose draw with form: released is no number for a class"
        raise UserError("clients.partition.alpha", found, "a larger alpha, or form: paper")
    return np.rint(shares_CK * sizes_C[:, None]).astype(np.int64).cumsum(1)[:, :-1]


DIRICHLET_FORMS = {"paper": paper_cuts, "released": released_cuts}


def _shards(dataset: Dataset, config: ClientsConfig, stream: np.random.RandomState) -> ClientImages:
    """Label-sorted images in shards, ``per_client`` for each client (McMahan et al., AISTATS 2017)."""
    words: Any = config.partition
    num_shards = config.count * words.per_client
    _require(dataset, num_shards, "clients.count * clients.partition.per_client")
    by_label = dataset.train[np.argsort(dataset.labels.numpy()[dataset.train], kind="stable")]
    sizes, dealt = even(len(by_label), num_shards), stream.permutation(num_shards)
    places = np.empty(num_shards, np.int64)  # of each shard among all that are dealt, client after client
    places[dealt] = np.arange(num_shards)
    by_place = by_label[np.argsort(np.repeat(places, sizes), kind="stable")]
    return ClientImages(by_place, sizes[dealt].reshape(config.count, words.per_client).sum(1))


def _diversity(dataset: Dataset, config: ClientsConfig, stream: np.random.RandomState) -> ClientImages:
    """A share of the classes for each client: FLGo's diversity partition, which FedPFT's code uses.

    Client after client takes a random one of the classes that the fewest have, until it has its number; so no two
    classes are held by numbers of clients that differ by more than one. A class's images are dealt out evenly among
    its clients. UserError where few clients with few classes would leave a class, and so its images, to nobody.
    """
    words: Any = config.partition
    labels = dataset.labels.numpy()[dataset.train]
    num_classes = len(dataset.label_names)
    per_client = max(1, int(words.share * num_classes + 1e-9))  # 0.29 * 100 is a little below 29
    _require(dataset, config.count, "clients.count")
    taken = np.empty((config.count, per_client), np.int64)
    num_holders = np.zeros(num_classes, np.int64)
    for own in taken:
        # Sorted by how many have it, equals at random.
        own[:] = np.lexsort((stream.permutation(num_classes), num_holders))[:per_client]
        num_holders[own] += 1
    members, owners = [], []
    for label in range(num_classes):
        members.append(stream.permutation(dataset.train[labels == label]))
        clients = np.flatnonzero((taken == label).any(1))
        if not len(clients):
            found = f"{config.count} clients with {per_client} of {num_classes} classes each"
            raise UserError("clients.partition.share", found, "at least one client for every class")
        owners.append(np.repeat(clients, even(len(members[-1]), len(clients))))
    return ClientImages.owned(np.concatenate(members), np.concatenate(owners), config.count)


def _sites(dataset: Dataset, config: ClientsConfig, stream: np.random.RandomState) -> ClientImages:
    """One client per natural site, or the same number of clients in each, its images dealt out evenly.

    Clients are in the order of ``site_names``; those of one site follow one another.
    """
    if dataset.sites is None:
        raise UserError("clients.partition.name", f"sites with {dataset.name}", "a data set with natural sites")
    num_sites = len(dataset.training_sites)
    if config.count % num_sites:
        trained = " that are trained on" if dataset.external_sites else ""
        raise UserError("clients.count", str(config.count), f"a multiple of the {num_sites} natural sites{trained}")
    per_site = config.count // num_sites
    images, sizes = [], []
    own = training_by_site(dataset.train, dataset.sites, dataset.site_names, dataset.name, dataset.external_sites)
    for name, members in own.items():
        if len(members) < per_site:
            whole = ", whole groups counted once" if has_whole_groups(dataset) else ""
            expected = f"at most its {len(members)} images{whole}"
            raise UserError("clients.count", f"{per_site} clients at site {name}", expected)
        images.append(stream.permutation(members))
        sizes.append(even(len(members), per_site))
    return ClientImages(np.concatenate(images), np.concatenate(sizes))


def _column(dataset: Dataset, config: ClientsConfig, _: np.random.RandomState) -> ClientImages:
    """One client per value of the table's column, in the order of ``owner_names``."""
    if dataset.owners is None:
        raise UserError("clients.partition.name", f"column with {dataset.name}", "a table, with data.columns.client")
    num_owners = len(dataset.owner_names)
    if config.count != num_owners:
        raise UserError("clients.count", str(config.count), f"the {num_owners} values of data.columns.client")
    return ClientImages.owned(dataset.train, dataset.owners[dataset.train], num_owners)


def _file(dataset: Dataset, config: ClientsConfig, _: np.random.RandomState) -> ClientImages:
    """The training images that the user's file gives to each client."""
    words: Any = config.partition
    return ClientImages.of(read_partition(words.path, dataset, config.count)["clients"])


PARTITIONS: dict[str, Callable[[Dataset, ClientsConfig, np.random.RandomState], ClientImages]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "shards": _shards,
    "diversity": _diversity,
    "sites": _sites,
    "column": _column,
    "file": _file,
}
#: Partitions in which nothing is drawn.
BROUGHT = ("column", "file")


def _require(dataset: Dataset, number: int, where: str) -> None:
    if number > len(dataset.train):
        whole = ", whole groups counted once" if has_whole_groups(dataset) else ""
        raise UserError(where, str(number), f"at most the {len(dataset.train)} training images{whole}")


@dataclass(frozen=True)
class PartitionRow:
    """What one client holds: ``n`` images, ``per_class[c]`` of them of class c."""

    client: int
    n: int
    per_class: tuple[int, ...]


def partition_table(dataset: Dataset, parts: Sequence[Indices], most: int | None = None) -> list[PartitionRow]:
    """Count every client's images by class; of more than ``most`` clients those of evenly spaced ones."""
    labels, every = dataset.labels.numpy(), 1 if most is None else math.ceil(len(parts) / most)
    chosen = ((client, parts[client]) for client in range(0, len(parts), every))
    return [
        PartitionRow(client, len(part), tuple(np.bincount(labels[part], minlength=len(dataset.label_names)).tolist()))
        for client, part in chosen
    ]
