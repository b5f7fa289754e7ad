"""Secure aggregation in a phase of a run: every rank plays all clients' keys and shares, and the masks of its own.

Shapes: K clients of a block, P numbers of a stream.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Payload
from fedsim.config.privacy import SecureAggregationConfig
from fedsim.errors import UserError
from fedsim.privacy.masks import Agreement
from fedsim.privacy.secure_aggregation import ID_BYTES, AdvertisedKeys, Client, RevealedShares, SealedShares, Server
from fedsim.seeding import numpy_stream

WHERE = "privacy.secure_aggregation"


@dataclass(frozen=True)
class SecuredCosts:
    """What secure aggregation takes in a phase.

    Bytes: of a client that stays, keys, shares and the masked message. Seconds on this rank: of keys and shares per
    client of the phase, of masks per client that trained here, and of the server's unmasking.
    """

    bytes_sent: int
    bytes_received: int
    key_seconds: float
    mask_seconds: float
    unmask_seconds: float


class SecuredPhase:
    """One run of the protocol, the same on every rank. Clients are lost after they have masked what they send.

    ``keys``, ``shares``, ``revealed``: the messages that went over the server, all that it knows beside the sum.
    """

    def __init__(
        self, settings: SecureAggregationConfig, seed: int, round: int, phase: str, clients: Sequence[int]
    ) -> None:
        """Advertise keys and share secrets.

        UserError for a lone client, whose message would be the sum, and where so many will be lost that those who stay
        are too few to unmask their sum: that is known beforehand here, and spares the training.
        """
        place = f"round {round}, phase {phase}"
        if len(clients) == 1:
            raise UserError(WHERE, f"one client in {place}, whose message is the sum", "two clients or more")
        started = time.perf_counter()
        #: How many must stay. What rounding leaves above a whole number does not count.
        self.threshold = settings.fewest(len(clients))
        self.lost = lost_clients(settings.dropout, seed, round, phase, clients)
        self.stayed = tuple(client for client in clients if client not in self.lost)
        if len(self.stayed) < self.threshold:
            found = f"{len(self.stayed)} of {len(clients)} clients left in {place}"
            expected = f"{self.threshold} or more, a threshold of {settings.threshold:.3g}; a lower dropout loses fewer"
            raise UserError(WHERE, found, expected)

        agreement = Agreement()
        self._clients: dict[int, Client] = {}
        for client in clients:
            random = numpy_stream(seed, f"secure aggregation/{phase}", round=round, client=client)
            self._clients[client] = Client(client, self.threshold, random, agreement)
        self.keys: list[AdvertisedKeys] = [side.advertise() for side in self._clients.values()]
        self.shares: list[SealedShares] = [side.share(self.keys) for side in self._clients.values()]
        for holder, side in self._clients.items():
            side.take({message.sender: message.sealed[holder] for message in self.shares if message.sender != holder})
        self.revealed: list[RevealedShares] = []
        self._key_seconds = time.perf_counter() - started
        self._mask_seconds = 0.0
        self._masked: set[int] = set()

    def masks(self, clients: Sequence[int], stream: str, size: int) -> Tensor:
        """Return what the clients add to their numbers of a stream, int64 (K, P), see ``comm.exact.Masks``."""
        started = time.perf_counter()
        masks_KP = np.zeros((len(clients), size), dtype=np.uint64)
        for client, mask_P in zip(clients, masks_KP, strict=True):
            self._clients[client].add_masks(mask_P, stream)
        self._masked |= set(clients)
        self._mask_seconds += time.perf_counter() - started
        return torch.from_numpy(masks_KP.view(np.int64))

    def unmask(self) -> "Unmasking":
        """Let those who stayed reveal their shares, and the server rebuild from them what is left of the masks."""
        started = time.perf_counter()
        self.revealed = [self._clients[client].reveal(self.stayed) for client in self.stayed]
        server = Server(self.keys, self.threshold)
        server.rebuild(self.revealed)
        return Unmasking(server, time.perf_counter() - started)

    def costs(self, num_numbers: int, unmasking: "Unmasking") -> SecuredCosts:
        """Return what the phase took, with messages of so many numbers."""
        client = self.stayed[0]
        keys = {message.client: message.nbytes for message in self.keys}
        shares = {message.sender: message for message in self.shares}
        given = [len(message.sealed[client]) for sender, message in shares.items() if sender != client]
        sent = keys[client] + shares[client].nbytes + ID_BYTES + 8 * num_numbers + self.revealed[0].nbytes
        received = sum(keys.values()) - keys[client] + sum(given) + ID_BYTES * (len(given) + len(self.stayed))
        return SecuredCosts(
            bytes_sent=sent,
            bytes_received=received,
            key_seconds=self._key_seconds / len(keys),
            mask_seconds=self._mask_seconds / max(1, len(self._masked)),
            unmask_seconds=unmasking.seconds,
        )


class Unmasking:
    """Takes what is left of the masks from sums, and counts the seconds."""

    def __init__(self, server: Server, seconds: float) -> None:
        self._server = server
        self.seconds = seconds

    def take_away(self, numbers_P: Tensor, stream: str) -> None:
        """Unmask a stream's sum, int64 (P,) on the CPU, in place."""
        started = time.perf_counter()
        self._server.take_away(numbers_P.numpy().view(np.uint64), stream)
        self.seconds += time.perf_counter() - started


def lost_clients(dropout: float, seed: int, round: int, phase: str, clients: Sequence[int]) -> frozenset[int]:
    """Draw who of the clients is lost in a phase, each with the probability ``dropout``."""
    draws = {client: numpy_stream(seed, f"dropout/{phase}", round=round, client=client).random() for client in clients}
    return frozenset(client for client, draw in draws.items() if draw < dropout)


def require_sums(method: Algorithm, payload: Payload) -> None:
    """UserError for a payload of which the server would read a single client's part."""
    alone = method.reads_alone or next((f"{group!r} row by row" for group in payload.gather), None)
    if alone is not None:
        found = f"{type(method).__name__}, whose server reads {alone}"
        raise UserError(WHERE, found, "null, or a method that needs sums alone")


def require_messages(method: Algorithm, payloads: Sequence[Payload]) -> None:
    """UserError where there would be nothing to mask in any phase of a round, whose ``payloads`` these are."""
    if not any(map(sends, payloads)):
        raise UserError(WHERE, f"{type(method).__name__}, which sends nothing", "null, or a method that does")


def sends(payload: Payload) -> bool:
    """Whether there is something to add up."""
    return any(tensors for groups in (payload.mean, payload.total) for tensors in groups.values())
