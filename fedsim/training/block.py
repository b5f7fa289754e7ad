"""What a block of clients has in training: its models, and what stands in front of them at a step.

Shapes: K clients in a block, M models of a client, R = K M rows, client by client, B images per step, P trained
parameters of one model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from fedsim.algorithms.base import Groups, Phase, ServerState, Step
from fedsim.training.flat import Layout


@dataclass
class Block:
    """The models of a block's clients in training: ``flat`` (R, P) and ``buffers`` (R, ...) change, ``fixed`` stay.

    Running statistics and counts are ``buffers``. ``fixed`` (R, ...) are parameters that the phase does not train and a
    client nevertheless has for its own. ``beyond`` bool (R, P): what lies beyond a client's own rank, and stays zero;
    None where all have the same. ``context``: what the method began the phase with, beside parameters.
    """

    clients: tuple[int, ...]
    state: ServerState
    phase: Phase
    layout: Layout
    flat: Tensor
    buffers: dict[str, Tensor]
    fixed: dict[str, Tensor]
    context: Groups
    beyond: Tensor | None = None

    def params(self, trained: Mapping[str, Tensor], num_rows: int) -> dict[str, Tensor]:
        """Return all parameters of the first rows, with these trained ones."""
        own = {name: value[:num_rows] for name, value in (self.fixed | self.buffers).items()}
        return {**self.state.params, **own, **trained}

    @property
    def own_names(self) -> list[str]:
        """The parameters that every client's models have for their own."""
        return [*self.layout.shapes, *self.buffers, *self.fixed]

    def row(self, client: int) -> "Block":
        """Return a copy of one client's part, by its place in the block."""
        rows = slice(client * self.phase.models, (client + 1) * self.phase.models)
        buffers, fixed = ({n: v[rows].clone() for n, v in part.items()} for part in (self.buffers, self.fixed))
        clients = (self.clients[client],)
        beyond = None if self.beyond is None else self.beyond[rows]
        flat = self.flat[rows].clone()
        return replace(self, clients=clients, flat=flat, buffers=buffers, fixed=fixed, beyond=beyond)

    def by_client(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return views (K, M, ...) of tensors (R, ...), or (K, ...) where a client has one model."""
        if self.phase.models == 1:
            return dict(rows)
        models = self.phase.models
        return {name: value.unflatten(0, (len(value) // models, models)) for name, value in rows.items()}


@dataclass(frozen=True)
class StepInputs:
    """What the first clients of a block have in front of them at one step, beside what the method sees of it.

    ``fixed`` (K, B, ...): the images' prefixes; ``counts`` (K,): the clients' own batch sizes, B the largest of them.
    """

    fixed: Tensor
    counts: list[int]
    step: Step

    def row(self, client: int) -> "StepInputs":
        """Return one client's part, no wider than its batch; a place is left where that is empty."""
        own, width, step = slice(client, client + 1), max(1, self.counts[client]), self.step
        targets, weights = (value[own, :width] for value in (step.targets, step.weights))
        context = rows_of(step.context, own)
        step = replace(step, targets=targets, weights=weights, context=context, chance=step.chance[own])
        return StepInputs(self.fixed[own, :width], self.counts[own], step)


def rows_of(context: Groups, rows: slice) -> Groups:
    """Return the context of some clients."""
    return {group: {name: value[rows] for name, value in tensors.items()} for group, tensors in context.items()}
