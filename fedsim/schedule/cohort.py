"""Who takes part in a round, with which weight, and in which blocks. Depends on the config and the seed alone.

Every rank computes the same cohort, so nothing is sent. Clients without training images never take part.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedsim.config.data import ClientsConfig
from fedsim.config.train import TrainConfig
from fedsim.data.dataset import Indices
from fedsim.errors import UserError
from fedsim.seeding import numpy_stream


@dataclass(frozen=True)
class Cohort:
    """The clients of a round, those with most local steps first; ``weights`` float64 (K,), summing to one."""

    clients: tuple[int, ...]
    weights: Tensor

    def weights_of(self, clients: Sequence[int]) -> Tensor:
        """Return the weights of some of the clients, float64 (K,)."""
        return self.weights[[self._places[client] for client in clients]]

    def growth(self, clients: Sequence[int]) -> float:
        """Return what makes a mean over some of the clients of a sum with their weights among all; one for all."""
        if len(clients) == len(self.clients):
            return 1.0
        return float(self.weights.sum() / self.weights_of(clients).sum())

    def weights_among(self, clients: Sequence[int]) -> Tensor:
        """Return the weights of all in a mean over some alone, float64 (K,): zero for the others, the sum the same."""
        among = set(clients)
        is_among = torch.tensor([client in among for client in self.clients], dtype=torch.bool)
        return torch.where(is_among, self.weights, 0) * self.growth(clients)

    def of_places(self, places: Sequence[int]) -> "Cohort":
        """Return the clients at some of the places, in this order, with weights among themselves."""
        if list(places) == list(range(len(self.clients))):
            return self
        weights = self.weights[list(places)]
        return Cohort(tuple(self.clients[place] for place in places), weights / weights.sum())

    @cached_property
    def _places(self) -> dict[int, int]:
        return {client: place for place, client in enumerate(self.clients)}

    def blocks(self, per_block: int) -> list[range]:
        """Cut into blocks: ranges of positions in ``clients``. Neighbours have similar numbers of steps."""
        return [
            range(start, min(start + per_block, len(self.clients))) for start in range(0, len(self.clients), per_block)
        ]


def draw_cohort(config: ClientsConfig, train: TrainConfig, sizes: Sequence[int], seed: int, round: int) -> Cohort:
    """Draw the cohort of a round; ``sizes`` is the number of training images per client.

    A client that is drawn several times, with ``multinomial``, takes part once and counts as often in the weights. With
    ``poisson`` there may be no client.
    """
    # What goes over all clients are a few passes of numpy: milliseconds for a million.
    present = drawn = np.flatnonzero(np.asarray(sizes))
    if not len(present):
        raise UserError("clients.partition", "no client with training images", "at least one")
    number = min(config.num_per_round, len(present))
    if config.sampling == "poisson":
        coins = numpy_stream(seed, "cohort", round=round).random(len(present))
        drawn = drawn[coins < config.num_per_round / config.count]
    elif number < len(present) or config.sampling == "multinomial":
        drawn = draw_clients(config, sizes, present, number, numpy_stream(seed, "cohort", round=round))
    times = Counter(drawn.tolist())
    clients = sorted(times, key=lambda c: (-num_local_steps(train, sizes[c]), -sizes[c], c))
    return Cohort(tuple(clients), client_weights(config, sizes, clients, times))


def draw_clients(
    config: ClientsConfig,
    sizes: Sequence[int],
    present: Sequence[int] | Indices,
    number: int,
    stream: np.random.Generator | np.random.RandomState,
) -> Indices:
    """Draw ``number`` of the clients ``present``, in the order of the draw; ``multinomial`` may repeat some."""
    odds = None
    if config.sampling != "uniform":
        volume = np.asarray(sizes)[present].astype(np.float64)
        odds = volume / volume.sum()
    return stream.choice(np.asarray(present), number, replace=config.sampling == "multinomial", p=odds)


def client_weights(
    config: ClientsConfig, sizes: Sequence[int], clients: Sequence[int], times: Mapping[int, int] | None = None
) -> Tensor:
    """Return the weights of ``clients`` in a mean over them, float64 (K,), summing to one.

    ``times``: how often each of them counts; None: once.
    """
    counts = [1 if times is None else times[client] for client in clients]
    volume = np.array(counts) * [sizes[client] if config.weighting == "samples" else 1 for client in clients]
    return torch.from_numpy(volume / volume.sum() if len(volume) else np.zeros(0))


def num_local_steps(train: TrainConfig, size: int) -> int:
    """Return the local steps of a client with ``size`` images in one phase."""
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None
    return train.epochs * math.ceil(size / train.batch_size)
