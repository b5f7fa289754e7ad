"""Per-client state that outlives a round, held by one rank per client and moved to where the client trains next.

Every rank knows who holds what, because the schedule is computed everywhere; only the states themselves travel.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import safetensors.torch
import torch
from torch import Tensor

from comm import Group

State = dict[str, Tensor]


class ClientStore:
    """The states of the clients that this rank holds, in host memory; ``holder`` says who holds which."""

    def __init__(self, group: Group, create: Callable[[int], State] | None = None) -> None:
        self._group = group
        self._create = create
        self.states: dict[int, State] = {}
        self.holder: dict[int, int] = {}

    @property
    def is_used(self) -> bool:
        return self._create is not None

    @contextmanager
    def open(self, clients: Sequence[int]) -> Iterator[list[State]]:
        """Give the states of clients that this rank trains, to be changed at will."""
        if self._create is None:
            yield [{} for _ in clients]
            return
        for client in clients:
            if client not in self.states:
                self.states[client] = self._create(client)
        yield [self.states[client] for client in clients]

    def read(self, client: int) -> State:
        """Return a copy of a state."""
        return {name: value.clone() for name, value in self.states[client].items()}

    def adopt(self, states: Mapping[int, State]) -> None:
        """Take this rank's share of a checkpoint's states, whatever number of ranks wrote it."""
        num_ranks = self._group.num_ranks
        self.holder = {client: client % num_ranks for client in states}
        self.states = {c: state for c, state in states.items() if self.holder[c] == self._group.rank}

    def move(self, trainer_of: Mapping[int, int]) -> None:
        """Bring the state of every client to the rank that will train it; every rank calls this with the same plan."""
        moves = [
            (client, self.holder[client], rank)
            for client, rank in sorted(trainer_of.items())
            if client in self.holder and self.holder[client] != rank
        ]
        me = self._group.rank
        if moves:
            packed = {
                rank: pack_states({c: self.states.pop(c) for c, source, to in moves if (source, to) == (me, rank)})
                for rank in sorted({to for _, source, to in moves if source == me})
            }
            sizes = self._group.gather_to_all({str(rank): len(data) for rank, data in packed.items()})
            incoming = {source: plan[str(me)] for source, plan in enumerate(sizes) if str(me) in plan}
            for data in self._group.exchange(packed, incoming).values():
                self.states.update(unpack_states(data))
        self.holder.update(trainer_of)


def pack_states(states: Mapping[int, State]) -> bytes:
    """Write states as one safetensors blob; names become ``client/name``."""
    flat = {f"{client}/{name}": value.cpu() for client, own in states.items() for name, value in own.items()}
    return bytes(safetensors.torch.save(flat))


def unpack_states(data: bytes) -> dict[int, State]:
    """Read what ``pack_states`` wrote."""
    states: dict[int, State] = {}
    for key, value in safetensors.torch.load(data).items():
        client, _, name = key.partition("/")
        states.setdefault(int(client), {})[name] = value
    return states


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return total.hexdigest()
