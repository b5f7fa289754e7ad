"""Per-client state that outlives a round: who holds it, and where it rests while nobody uses it.

A client's state belongs to one rank and is moved to where the client trains next. Between two uses it is one flat
buffer: on the device while it fits there, else in host memory, else in a file; the least recently needed goes down
first. Where a state rests never shows in a result. The files are scratch: a run resumes from its checkpoints.
"""

import contextlib
import hashlib
import math
import shutil
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.comm.group import Group
from fedsim.errors import UserError
from fedsim.storage.packed import Packed, State, StatesFile, pack, read_packed, split_image, write_packed

GIB = 2**30
# What a rank sends or takes at once when states move between ranks, unless a single state is larger.
WAVE_BYTES = 2**26
HOST = torch.device("cpu")


@dataclass(frozen=True)
class Budget:
    """Bytes that states at rest may take on one rank; ``folder`` is where those go that fit nowhere else."""

    device: float = 0
    host: float = math.inf
    folder: Path | None = None


class Tier:
    """States at rest in one kind of memory, the least recently needed first."""

    def __init__(self, device: torch.device, limit: float) -> None:
        self.device = device
        self.limit = limit
        self.states: OrderedDict[int, Packed] = OrderedDict()
        self.num_bytes = 0

    def add(self, client: int, packed: Packed) -> Iterator[tuple[int, Packed]]:
        """Take a state in and give out, one by one, those that no longer fit; perhaps itself."""
        if packed.num_bytes > self.limit:
            yield client, packed
            return
        while self.num_bytes + packed.num_bytes > self.limit:
            oldest = next(iter(self.states))
            yield oldest, self.pop(oldest)
        self.states[client] = packed.to(self.device)
        self.num_bytes += packed.num_bytes

    def pop(self, client: int) -> Packed:
        packed = self.states.pop(client)
        self.num_bytes -= packed.num_bytes
        return packed


class ClientStore:
    """The states of the clients that this rank holds; ``holder`` says, on every rank, who holds which.

    ``create`` makes a client's state before its first use; without it clients keep nothing.
    """

    def __init__(
        self, group: Group, create: Callable[[int], State] | None = None, budget: Budget | None = None
    ) -> None:
        budget = budget or Budget()
        self._budget = budget
        self.holder: dict[int, int] = {}
        self._group = group
        self._create = create
        self._folder = budget.folder
        self._tiers = [Tier(group.device, budget.device), Tier(HOST, budget.host)]
        self._spilled: dict[int, int] = {}
        self._open: set[int] = set()

    def emptied(self, place: str) -> "ClientStore":
        """Return a store like this one without states; what it spills goes to a folder ``place`` of its own."""
        folder = self._folder and self._folder / place
        return ClientStore(self._group, self._create, replace(self._budget, folder=folder))

    @property
    def is_used(self) -> bool:
        """Whether clients keep anything between rounds."""
        return self._create is not None

    def sizes(self) -> dict[int, int]:
        """Return the bytes of every state that rests here, by client, in the order of the clients."""
        in_memory = {client: packed.num_bytes for tier in self._tiers for client, packed in tier.states.items()}
        return dict(sorted((in_memory | self._spilled).items()))

    @contextlib.contextmanager
    def open(self, clients: Sequence[int]) -> Iterator[list[State]]:
        """Give the states of clients that this rank trains, on its device, to be changed at will.

        At the end of the ``with`` the states are taken back, by copy, and their mappings emptied: a change that
        comes too late is a KeyError, and tensors kept from a state have no way back into it.
        """
        if self._create is None:
            yield [{} for _ in clients]
            return
        assert self._open.isdisjoint(clients), "a client's state is open once at a time"
        self._open.update(clients)
        states = [self._take(client).to(self._group.device).unpack() for client in clients]
        yield states
        for client, state in zip(clients, states, strict=True):
            self._keep(client, pack(state, self._group.device))
            state.clear()
        self._open.difference_update(clients)

    def read(self, client: int) -> State:
        """Return a copy of a client's state, on the device; the state itself stays where and as it is."""
        if self._create is None:
            return {}
        packed = self.look(client) if client in self.holder else pack(self._create(client), HOST)
        return Packed(packed.header, packed.data.to(self._group.device, copy=True)).unpack()

    def look(self, client: int) -> Packed:
        """Return a state that rests here, in whatever memory, not to be changed."""
        for tier in self._tiers:
            if client in tier.states:
                return tier.states[client]
        assert client in self._spilled, f"client {client} rests on rank {self.holder.get(client)}, not here"
        return read_packed(self._path(client))

    def digest(self, server: str) -> str:
        """Return the sha256 over the server's digest and all clients' states; every rank calls this.

        Where clients keep nothing it is the server's digest as it stands.
        """
        if self._create is None:
            return server
        own = {str(client): self.look(client).digest() for client in self.sizes()}
        everyone = {int(client): digest for part in self._group.gather_to_all(own) for client, digest in part.items()}
        lines = [server, *(f"{client} {digest}" for client, digest in sorted(everyone.items()))]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def adopt(self, files: Iterable[StatesFile]) -> None:
        """Take this rank's share of a checkpoint's states, whatever number of ranks wrote it."""
        for file in files:
            for client in file.clients:
                self.holder[client] = client % self._group.num_ranks
                if self.holder[client] == self._group.rank:
                    self._keep(client, file.read(client))

    def move(self, trainer_of: Mapping[int, int]) -> None:
        """Bring the state of every client to the rank that will train it; every rank calls this with the same plan."""
        moves = [
            Move(client, self.holder[client], target)
            for client, target in sorted(trainer_of.items())
            if self.holder.get(client, target) != target
        ]
        self.holder.update(trainer_of)
        if not moves:
            return
        leaving = {move.client for move in moves if move.source == self._group.rank}
        own = {str(client): size for client, size in self.sizes().items() if client in leaving}
        sizes = {int(client): size for part in self._group.gather_to_all(own) for client, size in part.items()}
        for wave in waves(moves, sizes):
            self._exchange(wave, sizes)

    def _exchange(self, wave: Sequence["Move"], sizes: Mapping[int, int]) -> None:
        """Send and take the states of one wave."""
        outgoing: dict[int, list[Tensor]] = {}
        arriving: dict[int, list[int]] = {}
        for move in wave:
            if move.source == self._group.rank:
                outgoing.setdefault(move.target, []).append(self._take(move.client).image())
            elif move.target == self._group.rank:
                arriving.setdefault(move.source, []).append(move.client)
        received = self._group.exchange(
            {rank: torch.cat(images) for rank, images in outgoing.items()},
            {rank: sum(sizes[client] for client in clients) for rank, clients in arriving.items()},
        )
        for rank, clients in arriving.items():
            images = received[rank].split([sizes[client] for client in clients])
            for client, image in zip(clients, images, strict=True):
                self._keep(client, split_image(image))

    def _take(self, client: int) -> Packed:
        """Remove a state from where it rests, or make a new client's."""
        for tier in self._tiers:
            if client in tier.states:
                return tier.pop(client)
        if client not in self._spilled:
            assert self._create is not None
            self.holder.setdefault(client, self._group.rank)
            return pack(self._create(client), HOST)
        packed = read_packed(self._path(client))
        self._path(client).unlink()
        del self._spilled[client]
        return packed

    def _keep(self, client: int, packed: Packed) -> None:
        """Let a state rest as near to the device as fits; what was needed least recently makes room."""
        on_device, in_host = self._tiers
        for lower in on_device.add(client, packed):
            for lowest in in_host.add(*lower):
                self._spill(*lowest)

    def _spill(self, client: int, packed: Packed) -> None:
        path = self._path(client)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_packed(path, packed)
        except OSError as error:
            found = f"{error.strerror}, writing the {packed.num_bytes:,} bytes of a client's state"
            raise UserError(str(path.parent), found, "room for what store.host_gib leaves to the disk") from error
        self._spilled[client] = packed.num_bytes

    def _path(self, client: int) -> Path:
        assert self._folder is not None, "a limit on host memory comes with a folder"
        return self._folder / f"{client}.safetensors"


class Move(NamedTuple):
    """A client's state on its way from one rank to another."""

    client: int
    source: int
    target: int


def waves(moves: Iterable[Move], sizes: Mapping[int, int]) -> Iterator[list[Move]]:
    """Cut moves into lists in each of which no rank sends or takes more than ``WAVE_BYTES``, or a single state."""
    wave: list[Move] = []
    loads = Counter[tuple[str, int]]()
    for move in moves:
        ends = (("out", move.source), ("in", move.target))
        if wave and any(loads[end] + sizes[move.client] > WAVE_BYTES for end in ends):
            yield wave
            wave, loads = [], Counter()
        wave.append(move)
        loads.update(dict.fromkeys(ends, sizes[move.client]))
    if wave:
        yield wave


@contextlib.contextmanager
def scratch_folder(run_folder: Path, group: Group) -> Iterator[Path]:
    """Name a folder for this rank's spilled states, and leave none behind; what a killed run left goes first."""
    if group.is_server:
        for leftover in run_folder.glob("spilled-*"):
            shutil.rmtree(leftover)
    group.broadcast("leftovers gone")
    folder = run_folder / f"spilled-{group.rank:05d}"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
