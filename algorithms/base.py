"""What a federated method is: ten hooks. The defaults are FedAvg; a method overrides what it changes.

A method never sees ranks, process groups, files or the clock, and never loops over clients: whatever it gets
from a block of K clients has a leading client axis, and its code is the same for one client and for many.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fedsim.algorithms.contract import (
    PARAMS,
    TRAINED_KINDS,
    Aggregate,
    Batch,
    Facts,
    Gradients,
    GradOf,
    Groups,
    Payload,
    Phase,
    ServerState,
    Start,
    Step,
    Tensors,
    Update,
)
from fedsim.config.mistakes import KeyedError
from fedsim.config.train import TrainConfig
from fedsim.errors import UserError

__all__ = [
    "PARAMS",
    "TRAINED_KINDS",
    "Aggregate",
    "Algorithm",
    "Batch",
    "Facts",
    "GradOf",
    "Gradients",
    "Groups",
    "KeyedError",
    "Payload",
    "Phase",
    "ServerState",
    "Start",
    "Step",
    "Tensors",
    "TrainConfig",
    "Update",
    "add_exact",
    "beside",
    "keep",
    "recall",
    "squared_distance",
]


class Algorithm:
    """FedAvg, and the place where every other method starts (McMahan et al., AISTATS 2017, algorithm 1)."""

    class Config(BaseModel):
        """The method's own keys beside ``name``."""

        model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

        def check_training(self, train: TrainConfig) -> None:
            """Raise KeyedError for a key of the method or of ``train`` that has no effect beside the other's."""

    #: One line for ``launch.py list algorithms``.
    summary: ClassVar[str] = ""
    #: The groups under which clients keep tensors between rounds, see ``recall`` and ``keep``.
    keeps: tuple[str, ...] = ()
    #: Whether clients are given the aggregate itself, in ``receive``, and nothing else at a round's start.
    returns_aggregate: ClassVar[bool] = False
    #: Whether the server changes the frozen weights: every adapted layer then has a parameter of kind "shift".
    shifts_base: ClassVar[bool] = False
    #: What the server reads of a single client where a sum lets it, in words; secure aggregation refuses such a method.
    reads_alone: str | None = None
    #: Why the server cannot add what clients learned from its older states, in words; asynchronous rounds refuse it.
    assumes_fresh: str | None = None
    #: Why what the server reads may not be clipped, weighted anew and noisy, in words; mechanisms on whole messages
    #: refuse it. Where it is None a client that has learned nothing sends zeros.
    assumes_true_sums: str | None = None
    #: What it makes of LoRA's first factors, in words, where it takes no others than are drawn with B at zero.
    remakes_factors: ClassVar[str | None] = None
    #: Whether its update has a scale of its own in place of lora_alpha / r.
    has_own_scale: ClassVar[bool] = False

    def __init__(self, config: Any, facts: Facts) -> None:
        """Take the checked ``Config``; UserError where the model has not what the method is about."""
        self.config = config
        self.facts = facts
        self.specs = facts.specs

    def phases(self, round: int) -> tuple[Phase, ...]:
        """Return the phases of a round (counted from 1)."""
        return (Phase(),)

    def init_server(self, params: Tensors) -> Tensors:
        """Return the method's own server tensors before the first round."""
        return {}

    def begin(self, state: ServerState, phase: Phase, kept: Sequence[Tensors]) -> Start:
        """Return where a block's clients start a phase, and what they know then. Also called for zero clients."""
        return Start()

    def loss(self, batch: Batch) -> Tensor:
        """Return each client's local objective on its batch, (K,)."""
        return batch.task_loss

    def gradient(self, params: Tensors, grad_of: GradOf, step: Step) -> Gradients:
        """Return the gradient of a step from the trained parameters, all (K, ...) or (K, M, ...).

        ``grad_of`` gives that of the losses, on the step's images, at any parameters; its first answer's losses are
        the step's. A corrected gradient, or one taken elsewhere, is returned in its place; None for a parameter that
        stands still in this step.
        """
        return grad_of(params)

    def pre_aggregate(self, update: Update) -> Payload:
        """Return what the clients send; on the rank that trained them. Also called for zero clients (K = 0)."""
        return Payload(mean={PARAMS: self.sent(update.delta)})

    def post_aggregate(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        """Return the server's state after a phase. The same on every rank."""
        if aggregate.mean and PARAMS not in aggregate.mean and not self.returns_aggregate:
            found = f"means of {', '.join(map(repr, aggregate.mean))}, which nothing reads"
            raise UserError(f"{type(self).__name__}.pre_aggregate", found, f"{PARAMS!r}, or a post_aggregate for them")
        params = dict(state.params)
        for name, change in aggregate.mean.get(PARAMS, {}).items():
            params[name] = add_exact(params[name], change)
        return replace(state, params=params)

    def receive(self, state: ServerState, kept: Sequence[dict[str, Tensor]], aggregate: Aggregate) -> None:
        """Let a block's clients take something from the aggregate into what they keep, where it ``returns_aggregate``.

        ``state``: the server's after the phase, its ``round`` still that before the round.
        """

    def client_params(self, kept: Sequence[Tensors], params: Tensors, update: Update | None = None) -> Groups:
        """Return what clients have in place of the server's ``params``, (K, ...): for the models that they use, "own".

        And for those that the communication changes, "exchanged", where these are others. With the ``update`` of a
        round's last phase: at the end of the local training, before the communication; without: between two rounds.
        Also called for zero clients. What is measured as the global model has the mean of what clients do not send.
        """
        return {"own": {} if update is None else update.after}

    def diagnostics(self, state: ServerState, aggregate: Aggregate) -> dict[str, float]:
        """Return the method's own numbers for the round's log."""
        return {}

    def sent(self, tensors: Tensors) -> dict[str, Tensor]:
        """Leave out what clients keep to themselves or do not train."""
        return {name: value for name, value in self.trained(tensors).items() if self.specs[name].kind != "local"}

    def told(self, params: Tensors) -> dict[str, Tensor]:
        """Return what of the server's ``params`` it tells the clients: of all that they send, the whole."""
        return self.sent(params)

    def with_gradient(self, tensors: Tensors) -> dict[str, Tensor]:
        """Leave out, of what is sent, running statistics: they follow the images, not a gradient."""
        return {name: value for name, value in self.sent(tensors).items() if self.specs[name].kind != "buffer"}

    def trained(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Leave out what clients are given but never train, and what they count: such has one value for all."""
        return {name: value for name, value in tensors.items() if self.specs[name].kind in TRAINED_KINDS}


def recall(kept: Sequence[Tensors], group: str, fallback: Tensors) -> dict[str, Tensor]:
    """Stack what clients keep in a group, (K, ...) by name; who keeps nothing yet has the ``fallback``'s row."""
    return {
        name: torch.stack([own.get(f"{group}/{name}", value).to(value.device) for own in kept])
        if kept
        else value[None][:0]
        for name, value in fallback.items()
    }


def keep(kept: Sequence[dict[str, Tensor]], group: str, tensors_K: Tensors) -> None:
    """Let client k keep row k of every tensor (K, ...), by group and name."""
    for name, value in tensors_K.items():
        for own, row in zip(kept, value.unbind(), strict=True):
            own[f"{group}/{name}"] = row


def beside(factor_K: Tensor, value: Tensor) -> Tensor:
    """Give a factor (K,), or (K, M), the axes of a tensor (K, ...), on its device."""
    return factor_K.to(value.device).reshape(*factor_K.shape, *[1] * (value.dim() - factor_K.dim()))


def squared_distance(batch: Batch) -> Tensor:
    """Return each client's ||w - w_server||^2 over what it trains, (K,)."""
    num_clients = len(batch.logits)
    distances = [
        (batch.params[name] - batch.start[name]).reshape(num_clients, -1).square().sum(1) for name in batch.trained
    ]
    return torch.stack(distances).sum(0)


def add_exact(value: Tensor, change: Tensor) -> Tensor:
    """Add a float64 change to a parameter with one rounding to its own dtype; counters become whole numbers."""
    result = value.double() + change.to(value.device)
    if not value.dtype.is_floating_point:
        result = result.round()
    return result.to(value.dtype)
