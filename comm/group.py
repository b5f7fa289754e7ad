"""The process group: every collective of the simulator, the only door to torch.distributed.

A rank without work joins every sum with zeros. With one process nothing is opened and every collective
is the identity. Bytes are counted as each rank hands them to and takes them from a collective.
"""

import json
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from fedsim.comm.launcher import Place, find_place
from fedsim.comm.leave import Leave, ToldToLeave
from fedsim.comm.meeting import Meeting, meet
from fedsim.errors import UserError

# The last resort for a rank that lives (see comm/watch.py) and yet never comes: a long evaluation on one is no fault.
COLLECTIVE_TIMEOUT_SECONDS = 3600
#: What gloo and NCCL say where the process at the other end of a connection is gone.
GONE = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused"),
    "remote process exited or there was a network error",
)


class Group:
    """The ranks of one run. Use as a context manager: an exception inside ends every rank (see ``__exit__``)."""

    def __init__(self, place: Place, device: torch.device, backend: str, meeting: Meeting | None) -> None:
        self.rank = place.rank
        self.num_ranks = place.num_ranks
        self.launcher = place.launcher
        self.device = device
        self.backend = backend
        self.bytes_sent = 0
        self.bytes_received = 0
        self.leave = Leave()
        self._met_at = time.perf_counter()
        self._meeting = meeting

    @property
    def is_server(self) -> bool:
        return self.rank == 0

    @property
    def seconds_since_meeting(self) -> float:
        """Seconds since the last collective that no rank leaves before all have come."""
        return time.perf_counter() - self._met_at

    def sum_exact(self, values: Tensor) -> Tensor:
        """Sum an int64 tensor of the same shape on every rank; the result is on the device of the argument."""
        assert values.dtype == torch.int64
        return self._all_reduce(values)

    def sum_disjoint(self, values: Tensor) -> Tensor:
        """Merge float tensors of which every element is nonzero on one rank at most; exact, since x + 0 = x."""
        return self._all_reduce(values)

    def max_exact(self, values: Tensor) -> Tensor:
        """Return the largest of every element over the ranks; exact, since a maximum rounds nothing."""
        return self._all_reduce(values, dist.ReduceOp.MAX)

    def _all_reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        total = values
        if self._meeting is not None:
            on_wire = values.to(self._wire_device).contiguous()
            dist.all_reduce(on_wire, operation)
            self._count(on_wire, on_wire)
            total = on_wire.to(values.device)
        self._met_at = time.perf_counter()
        return total

    def gather_to_all(self, value: Any) -> list[Any]:
        """Give every rank the JSON value of each rank, in rank order."""
        if self._meeting is None:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self._wire_device)
        sizes = torch.zeros(self.num_ranks, dtype=torch.int64)
        sizes[self.rank] = len(data)
        sizes = self.sum_exact(sizes)
        padded = torch.zeros(int(sizes.max()), dtype=torch.uint8, device=self._wire_device)
        padded[: len(data)] = data
        parts = [torch.empty_like(padded) for _ in range(self.num_ranks)]
        dist.all_gather(parts, padded)
        self._count(padded, *parts)
        return [json.loads(bytes(part[:size].tolist())) for part, size in zip(parts, sizes.tolist(), strict=True)]

    def broadcast(self, value: Any) -> Any:
        """Give every rank the server's JSON value."""
        return self.gather_to_all(value if self.is_server else None)[0]

    def decide(self, act: Callable[[], Any]) -> Any:
        """Let the server act, and give every rank the JSON value that comes of it, or the UserError: then all end."""
        value, refusal = None, None
        if self.is_server:
            try:
                value = act()
            except UserError as error:
                refusal = [error.where, error.found, error.expected]
        value, refusal = self.broadcast([value, refusal])
        if refusal is not None:
            raise UserError(*refusal)
        return value

    def exchange(self, outgoing: dict[int, Tensor], incoming: dict[int, int]) -> dict[int, Tensor]:
        """Send bytes, uint8 (N,), to ranks and take ``incoming[rank]`` bytes from ranks, in host memory.

        Both ends know the plan.
        """
        device = self._wire_device
        taken = {rank: torch.empty(size, dtype=torch.uint8, device=device) for rank, size in incoming.items()}
        self._send_and_take({rank: data.to(device) for rank, data in outgoing.items()}, taken)
        return {rank: data.cpu() for rank, data in taken.items()}

    def _send_and_take(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]) -> None:
        """Send tensors to ranks and fill those of ``incoming``; what is empty does not travel."""
        sent, taken = ({rank: part for rank, part in ends.items() if part.numel()} for ends in (outgoing, incoming))
        operations = [dist.P2POp(dist.isend, part, rank) for rank, part in sent.items()]
        operations += [dist.P2POp(dist.irecv, part, rank) for rank, part in taken.items()]
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()
        self.bytes_sent += sum(part.nbytes for part in sent.values())
        self.bytes_received += sum(part.nbytes for part in taken.values())

    def agrees_to_leave(self) -> bool:
        """Whether some rank was told to leave; all ranks ask this together."""
        self.leave.agree(bool(self.max_exact(torch.tensor([int(self.leave.is_asked)]))))
        return self.leave.is_agreed

    def check_equal(self, what: str, digest: str) -> None:
        """Raise RuntimeError unless every rank holds the same digest."""
        digests = self.gather_to_all(digest)
        if len(set(digests)) > 1:
            raise RuntimeError(f"{what} differs between ranks: " + ", ".join(d[:12] for d in digests))

    @property
    def _wire_device(self) -> torch.device:
        return self.device if self.backend == "nccl" else torch.device("cpu")

    def _count(self, sent: Tensor, *received: Tensor) -> None:
        self.bytes_sent += sent.nbytes
        self.bytes_received += sum(tensor.nbytes for tensor in received)

    def __enter__(self) -> "Group":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the group, or end every rank: the first to fail prints its cause, the others follow silently.

        Exit codes: 2 for a UserError, 1 for anything else. A single process just lets the exception pass, and all
        ranks do where they leave together.
        """
        if self._meeting is None:
            return
        if error is None or isinstance(error, ToldToLeave):
            dist.barrier()
            self._meeting.watch.stop()
            dist.destroy_process_group()
            return
        _end_all(self._meeting, self.rank, error)


def open_group() -> Group:
    """Open the group of all processes that were started together: nccl if each has a GPU of its own, else gloo."""
    place = find_place()
    if place.num_ranks == 1:
        return Group(place, _own_device(place), "none", None)
    meeting = meet(place)
    try:
        device = _own_device(place)
        backend = _choose_backend(meeting.store, place, device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            backend,
            store=PrefixStore("group", meeting.store),
            rank=place.rank,
            world_size=place.num_ranks,
            timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_SECONDS),
        )
    except BaseException as error:
        _end_all(meeting, place.rank, error)
    return Group(place, device, backend, meeting)


def _end_all(meeting: Meeting, rank: int, error: BaseException) -> NoReturn:
    def tell() -> None:
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        elif isinstance(error, RuntimeError) and any(words in str(error) for words in GONE):
            last = str(error).strip().splitlines()[0]
            print(f"rank {rank}: another rank is gone, killed or out of memory ({last})", file=sys.stderr)
        else:
            print(f"rank {rank} failed:", file=sys.stderr)
            traceback.print_exception(error)

    meeting.watch.end_all(tell, 2 if isinstance(error, UserError) else 1)


def _own_device(place: Place) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", place.local_rank % torch.cuda.device_count())


def _choose_backend(store: Store, place: Place, device: torch.device) -> str:
    """nccl if no two ranks share a GPU and all have one; every rank reads the same facts and so decides the same."""
    chip = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
    store.set(f"chip/{place.rank}", f"{socket.gethostname()} {chip}" if chip else "none")
    chips = [store.get(f"chip/{rank}").decode() for rank in range(place.num_ranks)]
    return "nccl" if "none" not in chips and len(set(chips)) == len(chips) else "gloo"
