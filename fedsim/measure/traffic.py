"""What is sent, received and held, counted from values; floats are counted as float32.

Shapes: K clients.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Groups, Payload, Tensors


def sent_by_client(payload: Payload) -> int:
    """Return the bytes that one client sends, from a payload of any number of clients."""
    return sum(row_bytes(groups) for groups in (payload.mean, payload.total, payload.gather))


def told_to_client(method: Algorithm, params: Tensors, known: Tensors, context: Groups) -> int:
    """Return the bytes that the server sends one client before a phase.

    ``params``: the server's. ``known``: what clients were told of them in the round before; what has not changed since
    is not sent again. Of a shift of the frozen weights zeros are not sent: clients have the weights. ``context``: what
    the method begins the phase with (K, ...); what clients keep is there already.
    """
    kinds = {name: method.specs[name].kind for name in params}
    given = {n: v for n, v in params.items() if kinds[n] == "proxy" or (kinds[n] == "shift" and v.any())}
    before = {**known, **method.told(known)}
    new = [v for name, v in {**given, **method.told(params)}.items() if not same(before.get(name), v)]
    told = {group: tensors for group, tensors in context.items() if group not in method.keeps}
    return sum(value.nbytes for value in new) + row_bytes(told)


def row_bytes(groups: Groups) -> int:
    """Return the bytes of one client's row of tensors (K, ...)."""
    tensors: Iterable[Tensor] = (value for group in groups.values() for value in group.values())
    return sum(
        math.prod(value.shape[1:]) * min(8 if value.is_complex() else 4, value.element_size()) for value in tensors
    )


def same(known: Tensor | None, value: Tensor) -> bool:
    """Whether a tensor is there already and has not changed."""
    return known is not None and torch.equal(known, value)
