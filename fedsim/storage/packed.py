"""A client's state as one flat buffer. Header and buffer together are a safetensors file, byte for byte.

Tensors lie side by side, those of wide types first, so that every one is aligned and a state is taken apart into
views without a copy. The format is written and read here because safetensors' own functions hold a file two or
three times in memory, or map it, and mapped pages count as the process's memory.
"""

import hashlib
import itertools
import json
import mmap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from fedsim.errors import UserError
from fedsim.machine.files import replacing

State = dict[str, Tensor]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LENGTH_BYTES = 8
# A buffer of this size gets pages of its own, which go back to the system with it. The heap would keep them: it
# is cut up by the activations of the training that goes on between two uses of a state.
OWN_PAGES_BYTES = 2**20


class Entry(NamedTuple):
    """A tensor in a file: ``start`` and ``end`` are offsets behind the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Packed:
    """A state at rest: ``header`` is the file's, ``data`` uint8 (N,) all that follows it, on any device."""

    header: bytes
    data: Tensor

    @property
    def num_bytes(self) -> int:
        return len(self.header) + self.data.numel()

    def to(self, device: torch.device) -> "Packed":
        """Return it with its buffer on ``device``."""
        if self.data.device == device:
            return self
        buffer = _new_buffer(self.data.numel(), device)
        return Packed(self.header, buffer.copy_(self.data))

    def unpack(self) -> State:
        """Return the state's tensors, views of the buffer."""
        return {
            entry.name: self.data[entry.start : entry.end].view(DTYPES[entry.dtype]).reshape(entry.shape)
            for entry in _entries(self.header)
        }

    def chunks(self) -> tuple[bytes, memoryview]:
        """Return the bytes of the safetensors file."""
        return self.header, self.data.cpu().numpy().data

    def image(self) -> Tensor:
        """Return the bytes of the safetensors file as one tensor in host memory, uint8 (N,)."""
        return torch.cat([torch.frombuffer(bytearray(self.header), dtype=torch.uint8), self.data.cpu()])

    def digest(self) -> str:
        """Return the sha256 over names, types, shapes and bytes."""
        total = hashlib.sha256()
        for chunk in self.chunks():
            total.update(chunk)
        return total.hexdigest()


def pack(state: Mapping[str, Tensor], device: torch.device) -> Packed:
    """Copy a state into a new buffer on ``device``. UserError for a type that safetensors has not."""
    entries, end = [], 0
    for name in sorted(state, key=lambda name: (-state[name].itemsize, name)):
        value = state[name]
        if value.dtype not in NAMES:
            raise UserError(f"a client's state, tensor {name}", str(value.dtype), "one of " + ", ".join(NAMES.values()))
        entries.append(Entry(name, NAMES[value.dtype], tuple(value.shape), end, end + value.nbytes))
        end += value.nbytes
    packed = Packed(_header(entries), _new_buffer(end, device))
    for name, place in packed.unpack().items():
        place.copy_(state[name].detach())
    return packed


def write_packed(path: Path, packed: Packed) -> None:
    """Write one state as a file that is there whole or not at all; it need not survive the machine's end."""
    with replacing(path, durable=False) as file:
        for chunk in packed.chunks():
            file.write(chunk)


def read_packed(path: Path) -> Packed:
    """Read what ``write_packed`` wrote, into host memory."""
    with path.open("rb") as file:
        return _read_image(file)


def split_image(image: Tensor) -> Packed:
    """Take the safetensors image of a state, uint8 (N,), apart; the buffer is a copy."""
    length = LENGTH_BYTES + int.from_bytes(image[:LENGTH_BYTES].numpy().tobytes(), "little")
    buffer = _new_buffer(len(image) - length, torch.device("cpu"))
    return Packed(image[:length].numpy().tobytes(), buffer.copy_(image[length:]))


def write_states(path: Path, sizes: Mapping[int, int], look: Callable[[int], Packed]) -> str:
    """Write the states of clients as one file, durable on return, and return its sha256.

    It is a safetensors file of one uint8 tensor per client, whose name is the client's number and whose bytes are
    again a safetensors file: so the header stays small, and one state is in memory at a time. ``sizes``: the
    ``num_bytes`` of each client's state; ``look`` returns the state.
    """
    places = zip(sizes.items(), itertools.accumulate(sizes.values()), strict=True)
    header = _header(Entry(str(client), "U8", (size,), end - size, end) for (client, size), end in places)
    total = hashlib.sha256(header)
    with replacing(path, durable=True) as file:
        file.write(header)
        for client in sizes:
            for chunk in look(client).chunks():
                total.update(chunk)
                file.write(chunk)
    return total.hexdigest()


class StatesFile:
    """A file of ``write_states``, read one client at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            header = _read_header(file)
        self._begins = {int(entry.name): len(header) + entry.start for entry in _entries(header)}

    @property
    def clients(self) -> list[int]:
        return list(self._begins)

    def read(self, client: int) -> Packed:
        """Return the state of one client, in host memory."""
        with self._path.open("rb") as file:
            file.seek(self._begins[client])
            return _read_image(file)


def file_digest(path: Path) -> str:
    """Return the sha256 of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(entries: Iterable[Entry]) -> bytes:
    fields = {
        entry.name: {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (entry.start, entry.end)}
        for entry in entries
    }
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


# Clients have states of the same form, so a few headers stand for all of them.
@lru_cache(maxsize=64)
def _entries(header: bytes) -> tuple[Entry, ...]:
    fields = json.loads(header[LENGTH_BYTES:])
    return tuple(Entry(name, own["dtype"], tuple(own["shape"]), *own["data_offsets"]) for name, own in fields.items())


def _read_header(file: BinaryIO) -> bytes:
    length = file.read(LENGTH_BYTES)
    return length + file.read(int.from_bytes(length, "little"))


def _read_image(file: BinaryIO) -> Packed:
    header = _read_header(file)
    size = max((entry.end for entry in _entries(header)), default=0)
    buffer = _new_buffer(size, torch.device("cpu"))
    found = file.readinto(buffer.numpy())  # type: ignore[attr-defined]  # BinaryIO does not name it
    assert found == size, f"{file.name}: {found} bytes of {size}"
    return Packed(header, buffer)


def _new_buffer(size: int, device: torch.device) -> Tensor:
    if device.type != "cpu" or size < OWN_PAGES_BYTES:
        return torch.empty(size, dtype=torch.uint8, device=device)
    return torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE), dtype=torch.uint8)
