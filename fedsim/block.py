"""What a block of clients has in training: its models, and what stands in front of them at a step.

Shapes: K clients in a block, M models of a client, R = K M rows, client by client, B images per step, P trained
parameters of one model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from algorithms.base import Phase, ServerState
from fedsim.layout import Layout


@dataclass
class Block:
    """The models of a block's clients in training: ``flat`` (R, P) and ``buffers`` (R, ...) change, ``held`` stay.

    Running statistics and counts are ``buffers``. ``held`` (R, ...) are parameters that the phase does not train and a
    client nevertheless has for its own.
    """

    clients: tuple[int, ...]
    state: ServerState
    phase: Phase
    layout: Layout
    flat: Tensor
    buffers: dict[str, Tensor]
    held: dict[str, Tensor]

    def params(self, leaf: Tensor) -> dict[str, Tensor]:
        """Return all parameters of the first rows, the trained ones from ``leaf``, a copy of their ``flat``."""
        own = {name: value[: len(leaf)] for name, value in (self.held | self.buffers).items()}
        return {**self.state.params, **own, **self.layout.unpack(leaf)}

    @property
    def own_names(self) -> list[str]:
        """The parameters that every client's models have for their own."""
        return [*self.layout.shapes, *self.buffers, *self.held]

    def row(self, client: int) -> "Block":
        """Return a copy of one client's part, by its place in the block."""
        rows = slice(client * self.phase.models, (client + 1) * self.phase.models)
        buffers, held = ({n: v[rows].clone() for n, v in part.items()} for part in (self.buffers, self.held))
        clients = (self.clients[client],)
        return replace(self, clients=clients, flat=self.flat[rows].clone(), buffers=buffers, held=held)

    def by_client(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return views (K, M, ...) of tensors (R, ...), or (K, ...) where a client has one model."""
        if self.phase.models == 1:
            return dict(rows)
        models = self.phase.models
        return {name: value.unflatten(0, (len(value) // models, models)) for name, value in rows.items()}


@dataclass(frozen=True)
class StepInputs:
    """What the first clients of a block have in front of them at one step.

    ``fixed`` (K, B, ...): the images' prefixes; ``targets`` (K, B, ...); ``weights`` (K, B); ``counts`` (K,): the
    clients' own batch sizes, B the largest of them; ``decided`` (K, ...); ``states``: what the clients keep.
    """

    fixed: Tensor
    targets: Tensor
    weights: Tensor
    counts: list[int]
    decided: Mapping[str, Tensor]
    states: Sequence[Mapping[str, Tensor]]

    def row(self, client: int) -> "StepInputs":
        """Return one client's part, no wider than its batch."""
        own, width = slice(client, client + 1), self.counts[client]
        fixed, targets, weights = (value[own, :width] for value in (self.fixed, self.targets, self.weights))
        decided = {name: value[own] for name, value in self.decided.items()}
        return StepInputs(fixed, targets, weights, self.counts[own], decided, self.states[own])
