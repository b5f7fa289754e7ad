"""Which rank of the LoRA factors each client has."""

from collections.abc import Sequence

import numpy as np

from fedsim.config.words import LoraConfig, RanksConfig
from fedsim.errors import UserError
from fedsim.seeding import chance


def client_ranks(lora: LoraConfig | None, sizes: Sequence[int], seed: int) -> tuple[int, ...] | None:
    """Return every client's rank; None where all have ``lora.r``.

    ``sizes``: the clients' numbers of images. UserError for a list that is longer than there are clients.
    """
    if lora is None or lora.ranks is None:
        return None
    if isinstance(lora.ranks, RanksConfig):
        return _by_images(lora.ranks, sizes) if lora.ranks.by == "images" else _drawn(lora.ranks, len(sizes), seed)
    if len(lora.ranks) > len(sizes):
        raise UserError("model.lora.ranks", f"{len(lora.ranks)} ranks", f"at most one for each of {len(sizes)} clients")
    return tuple(lora.ranks[client % len(lora.ranks)] for client in range(len(sizes)))


def _drawn(ranks: RanksConfig, num_clients: int, seed: int) -> tuple[int, ...]:
    chances = [chance(seed, "rank", client=client) for client in range(num_clients)]
    return _at(ranks, chances)


def _by_images(ranks: RanksConfig, sizes: Sequence[int]) -> tuple[int, ...]:
    """The share of the clients that stand before a client tells its rank; of equal sizes the lower number is first."""
    places = np.empty(len(sizes), dtype=np.int64)
    places[np.argsort(sizes, kind="stable")] = np.arange(len(sizes))
    return _at(ranks, [float(place + 0.5) / len(sizes) for place in places])


def _at(ranks: RanksConfig, points: Sequence[float]) -> tuple[int, ...]:
    """The rank at each point of 0..1, along which the ranks' shares lie side by side."""
    ends = np.cumsum(ranks.shares)[:-1]
    return tuple(ranks.values[int(np.searchsorted(ends, point, side="right"))] for point in points)
