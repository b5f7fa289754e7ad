"""What is sent, received and held, counted from values; floats are counted as float32.

Shapes: K clients.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Groups, Payload, Tensors
from fedsim.models.specs import FACTORS, ParamSpec


@dataclass(frozen=True)
class Size:
    """Bytes of a message to or from one client: of LoRA factors of the ``largest`` rank, and of all else."""

    factors: int
    others: int
    largest: int

    @property
    def full(self) -> int:
        """Bytes with all ranks."""
        return self.factors + self.others

    def of_all(self, clients: Sequence[int], ranks: Sequence[int] | None) -> int:
        """Return the bytes of so many clients' messages together, where client k has the rank ``ranks[k]``."""
        if ranks is None:
            return self.full * len(clients)
        return sum(self.others + self.factors * ranks[client] // self.largest for client in clients)


def sent_by_client(payload: Payload, specs: Mapping[str, ParamSpec]) -> Size:
    """Return what one client sends, from a payload of any number of clients."""
    groups = (tensors for kind in (payload.mean, payload.total, payload.gather) for tensors in kind.values())
    rows = ((name, value.shape[1:], row_bytes(value)) for tensors in groups for name, value in tensors.items())
    return size_of(rows, specs)


def told_to_client(method: Algorithm, params: Tensors, known: Tensors, context: Groups) -> Size:
    """Return what the server sends one client before a phase.

    ``params``: the server's. ``known``: what clients were told of them in the round before; what has not changed since
    is not sent again. Of a shift of the frozen weights zeros are not sent: clients have the weights. ``context``: what
    the method begins the phase with (K, ...); what clients keep is there already.
    """
    kinds = {name: method.specs[name].kind for name in params}
    given = {n: v for n, v in params.items() if kinds[n] == "proxy" or (kinds[n] == "shift" and v.any())}
    before = {**known, **method.told(known)}
    new = {n: v for n, v in {**given, **method.told(params)}.items() if not same(before.get(n), v)}
    told = [item for group, tensors in context.items() if group not in method.keeps for item in tensors.items()]
    parts = [(name, value.shape[1:], row_bytes(value)) for name, value in told]
    return size_of([*((name, value.shape, value.nbytes) for name, value in new.items()), *parts], method.specs)


def whole_model(params: Tensors, specs: Mapping[str, ParamSpec]) -> Size:
    """Return all of the server's parameters."""
    return size_of([(name, value.shape, value.nbytes) for name, value in params.items()], specs)


def size_of(parts: Iterable[tuple[str, Sequence[int], int]], specs: Mapping[str, ParamSpec]) -> Size:
    """Return the size of tensors given by name, shape without a client axis, and bytes.

    What has the name and shape of a LoRA factor shrinks with a client's rank.
    """
    found = {True: 0, False: 0}
    for name, shape, num_bytes in parts:
        spec = specs.get(name)
        found[spec is not None and spec.kind in FACTORS and tuple(shape) == spec.shape] += num_bytes
    largest = max((spec.shape[2] for spec in specs.values() if spec.kind == "lora_b"), default=1)
    return Size(found[True], found[False], largest)


def row_bytes(value: Tensor) -> int:
    """Return the bytes of one client's row of a tensor (K, ...)."""
    return math.prod(value.shape[1:]) * min(8 if value.is_complex() else 4, value.element_size())


def same(known: Tensor | None, value: Tensor) -> bool:
    """Whether a tensor is there already and has not changed."""
    return known is not None and torch.equal(known, value)
