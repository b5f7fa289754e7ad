"""Optimisers over the stacked parameters of a block: row k of every tensor is client k's own.

SGD, Adam and AdamW act element by element, so one update of the matrix (K, P) is K separate optimisers. Clients are
sorted by their number of steps, longest first; at any step the first ``active`` rows move and the rest stand still.
The arithmetic is that of torch.optim.SGD, torch.optim.Adam and torch.optim.AdamW.

Shapes: K clients in a block, P trained parameters of one client.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.algorithms.base import Phase
from fedsim.config.train import ScheduleConfig, TrainConfig
from fedsim.training.flat import pieces


class StackedOptimizer:
    """State of K optimisers; ``state`` maps names to tensors with a client axis, ready to be kept by the clients."""

    def __init__(
        self, config: TrainConfig, flat_KP: Tensor, states: list[dict[str, Tensor]], beyond_KP: Tensor | None = None
    ) -> None:
        """Start fresh, or from kept ``states``, one mapping per client (an empty one is fresh).

        ``beyond_KP``: where a client has nothing that moves, whatever a method or noise adds to its gradient.
        """
        self.config = config
        names = ["momentum"] if config.optimizer == "sgd" else ["first", "second"]
        if config.optimizer == "sgd" and config.momentum == 0:
            names = []
        self.state = {name: torch.zeros_like(flat_KP) for name in names}
        # A number for each client; for each of its parameters where some have stood still, see ``step``.
        width = max((len(kept["num_steps"]) for kept in states if kept), default=1)
        self.num_steps = torch.zeros(len(flat_KP), width, dtype=torch.float64)
        for row, kept in enumerate(states):
            for name in names if kept else []:
                self.state[name][row] = kept[name].to(flat_KP.device)
            if kept:
                self.num_steps[row] = kept["num_steps"]
        self._beyond = beyond_KP
        for value in self.state.values():
            self._keep_within(value)

    def rows(self) -> list[dict[str, Tensor]]:
        """Return each client's state."""
        return [
            {name: value[row].clone() for name, value in self.state.items()} | {"num_steps": steps.clone()}
            for row, steps in enumerate(self.num_steps)
        ]

    def step(self, flat_KP: Tensor, grad: Tensor, lr: float, still: Sequence[slice] = ()) -> None:
        """Move the first ``len(grad)`` rows of ``flat_KP`` in place, but for the columns ``still``.

        These keep their state, too, as a parameter without gradient does in torch.optim.
        """
        if not still:
            self._step(flat_KP, grad, lr)
            return
        if self.config.optimizer != "sgd" and self.num_steps.shape[1] == 1:
            self.num_steps = self.num_steps.to(flat_KP.device).expand(flat_KP.shape).clone()
        tensors = [flat_KP, *self.state.values()] + ([self.num_steps] if self.num_steps.shape[1] > 1 else [])
        places = [tensor[: len(grad), columns] for tensor in tensors for columns in still]
        before = [place.clone() for place in places]
        self._step(flat_KP, grad, lr)
        for place, value in zip(places, before, strict=True):
            place.copy_(value)

    def _keep_within(self, value: Tensor) -> Tensor:
        """Return, and for a state leave, zeros where a client has nothing."""
        return value if self._beyond is None else value.masked_fill_(self._beyond[: len(value)], 0)

    def _step(self, flat_KP: Tensor, grad: Tensor, lr: float) -> None:
        active = len(grad)
        grad = self._keep_within(grad)
        self.num_steps[:active] += 1
        scale = None
        if self.config.clip_norm is not None:
            norm = grad.norm(dim=1, keepdim=True)
            scale = (self.config.clip_norm / (norm + 1e-6)).clamp(max=1)
        for piece in pieces(flat_KP):
            own = grad[:, piece] if scale is None else grad[:, piece] * scale
            self._move(flat_KP[:active, piece], own, lr, piece)

    def _move(self, flat: Tensor, grad: Tensor, lr: float, piece: slice) -> None:
        """Move some columns of the first rows, ``flat``, in place."""
        if self.config.optimizer == "adamw":
            flat.mul_(1 - lr * self.config.weight_decay)
        elif self.config.weight_decay:
            grad = grad.add(flat, alpha=self.config.weight_decay)
        if self.config.optimizer == "sgd":
            self._sgd(flat, grad, lr, piece)
        else:
            self._adam(flat, grad, lr, piece)

    def _sgd(self, flat: Tensor, grad: Tensor, lr: float, piece: slice) -> None:
        if self.config.momentum:
            grad = self.state["momentum"][: len(grad), piece].mul_(self.config.momentum).add_(grad)
        flat.add_(grad, alpha=-lr)

    def _adam(self, flat: Tensor, grad: Tensor, lr: float, piece: slice) -> None:
        beta1, beta2 = self.config.betas
        first, second = (self.state[name][: len(grad), piece] for name in ("first", "second"))
        steps = self.num_steps[: len(grad)]
        if steps.shape[1] > 1:
            steps = steps[:, piece]
        first.lerp_(grad, 1 - beta1)
        second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        rate = (lr / (1 - beta1**steps)).to(flat)
        root = (1 - beta2**steps).sqrt().to(flat)
        flat.sub_(rate * first / (second.sqrt() / root + 1e-8))


def learning_rate(base: float, schedule: ScheduleConfig, round: int, num_rounds: int) -> float:
    """Return the learning rate of a round (counted from 1)."""
    done = (round - 1) / max(1, num_rounds - 1)
    if schedule.name == "cosine":
        return base * (schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * done)))
    if schedule.name == "linear":
        return base * (1 + (schedule.final - 1) * done)
    if schedule.name == "inverse":
        return base / round
    if schedule.name == "step":
        return base * schedule.factor ** ((round - 1) // schedule.every)
    return base


def optimizer_places(phase: Phase) -> list[str]:
    """The places of the optimiser states in a client's state, one for each of its models."""
    return [f"optimizer/{phase.name}/{model}/" for model in range(phase.models)]


def kept_moments(kept: list[dict[str, Tensor]], phase: Phase) -> list[dict[str, Tensor]]:
    """Return the optimiser states of a phase that clients keep, one for each model."""
    return [
        {name.removeprefix(start): value for name, value in own.items() if name.startswith(start)}
        for own in kept
        for start in optimizer_places(phase)
    ]


def keep_moments(kept: list[dict[str, Tensor]], phase: Phase, optimizer: StackedOptimizer) -> None:
    """Let clients keep their models' optimiser states."""
    places = [(own, start) for own in kept for start in optimizer_places(phase)]
    for (own, start), row in zip(places, optimizer.rows(), strict=True):
        own.update({start + name: value for name, value in row.items()})
