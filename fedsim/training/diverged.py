"""Clients whose training diverged: found behind it, and left out of the phase as if they had not been drawn.

Shapes: K clients in a block.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedsim.algorithms.base import Update
from fedsim.comm.exact import DIVERGED
from fedsim.errors import UserError

#: Changes beyond it no exact sum has room for, see ``comm/exact.py``.
LIMIT = 2.0**21


def has_diverged(update: Update) -> list[bool]:
    """Say of each client whether a trained parameter is not finite, or has changed by more than ``LIMIT``."""
    found = torch.zeros(len(update.clients), dtype=torch.bool)
    for change in update.delta.values():
        fits = change.abs() <= LIMIT
        found |= ~fits.reshape(len(fits), math.prod(fits.shape[1:])).all(1).cpu()
    return found.tolist()


def without(
    update: Update, losses: Tensor, before: Sequence[dict[str, Tensor]], is_out: Sequence[bool]
) -> tuple[Update, Tensor]:
    """Return update and losses (K,) of the others alone, and give those who are out what they kept ``before``."""
    for own, earlier, out in zip(update.kept, before, is_out, strict=True):
        if out:
            own.clear()
            own.update(earlier)
    stay = torch.tensor([place for place, out in enumerate(is_out) if not out], dtype=torch.int64)

    def rows(value: Tensor) -> Tensor:
        return value[stay.to(value.device)]

    others = replace(
        update,
        clients=tuple(update.clients[place] for place in stay.tolist()),
        weights=rows(update.weights),
        after={name: rows(value) for name, value in update.after.items()},
        context={group: {name: rows(value) for name, value in own.items()} for group, own in update.context.items()},
        kept=[update.kept[place] for place in stay.tolist()],
        num_steps=rows(update.num_steps),
    )
    return others, rows(losses)


def require_few(clients: Sequence[int], is_out: Tensor, max_share: float) -> tuple[int, ...]:
    """Return those of a round's clients that are left out; UserError where they are more than this share."""
    diverged = tuple(client for client, out in zip(clients, is_out.tolist(), strict=True) if out)
    # Divided, since 0.29 * 100 is a little below 29.
    if diverged and len(diverged) / len(clients) > max_share:
        found = f"{len(diverged)} of {len(clients)} clients that diverged, such as client {diverged[0]}"
        raise UserError("clients.max_diverged", found, f"a share of at most {max_share:g} ({DIVERGED})")
    return diverged
