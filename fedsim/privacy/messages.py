"""What clients let out as one vector: under one naming, its norms, and the factors that clip it.

Shapes: K clients in a block, T tensors of a message.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedsim.algorithms.base import PARAMS, Aggregate, Groups, Payload, Tensors, beside
from fedsim.errors import UserError

# A clipped norm stays below the bound after all roundings of float64.
BELOW = 1 - 2.0**-40
MEAN, TOTAL = "mean", "total"


def message_of(payload: Payload) -> dict[str, Tensor]:
    """Return means and totals (K, ...) by kind, group and name, float64, in the order of their names.

    UserError for rows that are gathered: a server that reads single clients' is told them, whatever a sum hides.
    """
    if any(payload.gather.values()):
        raise UserError("privacy", f"a method that gathers single clients' {min(payload.gather)!r}", "means and totals")
    named = {key: value.double() for key, value in _named(payload.mean, payload.total)}
    return dict(sorted(named.items()))


def _named(mean: Groups, total: Groups) -> list[tuple[str, Tensor]]:
    return [
        (f"{kind}/{group}/{name}", value)
        for kind, groups in ((MEAN, mean), (TOTAL, total))
        for group, tensors in groups.items()
        for name, value in tensors.items()
    ]


def sums_of(aggregate: Aggregate) -> dict[str, Tensor]:
    """Return an aggregate's means and totals under the same naming."""
    return dict(sorted(_named(aggregate.mean, aggregate.total)))


def groups_of(named: Tensors) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Return means and totals by kind, to make a payload or an aggregate of."""
    kinds: dict[str, dict[str, dict[str, Tensor]]] = {MEAN: {}, TOTAL: {}}
    for key, value in named.items():
        kind, group, name = key.split("/", 2)
        kinds[kind].setdefault(group, {})[name] = value
    return kinds


def param_of(key: str) -> str | None:
    """Return the parameter whose change stands under that key; None where it is something else."""
    kind, group, name = key.split("/", 2)
    return name if (kind, group) == (MEAN, PARAMS) else None


def norms_of(named: Tensors, num_clients: int) -> Tensor:
    """Return each client's norm of every tensor, float64 (K, T)."""
    squares = [value.reshape(num_clients, math.prod(value.shape[1:])).square().sum(1) for value in named.values()]
    return torch.stack(squares, 1).sqrt() if squares else torch.zeros(num_clients, 0, dtype=torch.float64)


def shrink(norms: Tensor, bound: float) -> Tensor:
    """Return the factors that bring norms within a bound; 1 where they are."""
    return torch.where(norms > bound * BELOW, bound * BELOW / norms, 1.0)


def scaled(named: Mapping[str, Tensor], factors_KT: Tensor) -> dict[str, Tensor]:
    """Multiply every client's tensors by factors of their own."""
    pairs = zip(named.items(), factors_KT.unbind(1), strict=True)
    return {key: beside(factor, value) * value for (key, value), factor in pairs}
