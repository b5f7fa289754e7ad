"""What a federated method is. The defaults are FedAvg; a method overrides what it changes.

A method never sees ranks, process groups, files or the clock, and never loops over clients: whatever it gets
from a block of K clients has a leading client axis, and its code is the same for one client and for many.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from algorithms.exchange import (
    TRAINED_KINDS,
    Aggregate,
    Alignment,
    Batch,
    Payload,
    Phase,
    ServerState,
    Update,
)
from fedsim.config_train import TrainConfig
from fedsim.models.specs import ParamSpec

__all__ = [
    "TRAINED_KINDS",
    "Aggregate",
    "Algorithm",
    "Alignment",
    "Batch",
    "Payload",
    "Phase",
    "ServerState",
    "Update",
    "add_exact",
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
    #: Whether clients keep a state between rounds (``begin``, ``Update.states``, ``receive``).
    keeps_client_state: ClassVar[bool] = False
    #: Whether clients get the aggregate itself back, and nothing else at a round's start; for the count of bytes.
    returns_aggregate: ClassVar[bool] = False

    def __init__(self, config: Any, specs: Mapping[str, ParamSpec], num_rounds: int = 1) -> None:
        self.config = config
        self.specs = specs
        self.num_rounds = num_rounds

    def phases(self, round: int) -> tuple[Phase, ...]:
        """Return the phases of a round (counted from 1)."""
        del round
        return (Phase(),)

    def init_server(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the method's own server tensors before the first round."""
        del params
        return {}

    def init_client(self, client: int) -> dict[str, Tensor]:
        """Return a client's state before its first round."""
        del client
        return {}

    def begin(self, state: ServerState, phase: Phase, states: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """Return what clients start a phase from in place of the server's parameters: (K, ...), or (K, M, ...).

        Parameters that the phase does not train may be among them. Also called for zero clients.
        """
        del state, phase, states
        return {}

    def assess(self, f1_KM: Tensor, previous: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Decide for the coming local pass, from the macro-F1 (0..1) of each client's models on its own images.

        ``previous``: what was returned before the pass before, empty before the first. The loss finds the result,
        tensors (K, ...), in ``Batch.decided``. Called where ``Phase.assess_on`` is set and there are several passes.
        """
        del f1_KM, previous
        return {}

    def loss(self, batch: Batch) -> Tensor:
        """Return each client's local objective on its batch, (K,)."""
        return batch.task_loss

    def ascend(self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return how far trained parameters are moved, once their gradient is known, before a second gradient.

        All (K, ...), or (K, M, ...). The step is then taken from the unmoved parameters with the second gradient, of
        the same batch. Nothing, {}: the first gradient is the step's.
        """
        del params, grads
        return {}

    def pre_aggregate(self, update: Update) -> Payload:
        """Return what the clients send; on the rank that trained them. Also called for zero clients (K = 0)."""
        return Payload(mean=self.sent(update.delta))

    def post_aggregate(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        """Return the server's state after a phase. The same on every rank."""
        params = dict(state.params)
        for name, change in aggregate.mean.items():
            params[name] = add_exact(params[name], change)
        return replace(state, params=params)

    def aligns_after(self, round: int) -> bool:
        """Whether the server distils the clients' sub-model anew after a round (counted from 1)."""
        del round
        return False

    def align(self, state: ServerState, aggregate: Aggregate, seed: int) -> Alignment:
        """Return what is distilled after a round that ``aligns_after`` names; the same on every rank.

        ``state`` and ``aggregate``: after the round's last phase. ``seed``: the round's own, for what is drawn.
        """
        raise NotImplementedError(f"{type(self).__name__}.align, since its aligns_after says so")

    def receive(self, state: ServerState, states: Sequence[dict[str, Tensor]], aggregate: Aggregate) -> None:
        """Let a block's clients take something from the aggregate into their own states, in place.

        ``state``: the server's after the phase, its ``round`` still that before the round.
        """

    def client_model(
        self, states: Sequence[Mapping[str, Tensor]], params: Mapping[str, Tensor], update: Update | None = None
    ) -> Mapping[str, Tensor]:
        """Return what clients use in place of the server's ``params``, (K, ...).

        With the ``update`` of a round's last phase: at the end of the local training, before the communication;
        without: between two rounds.
        """
        del states, params
        return {} if update is None else update.after

    def exchanged_model(
        self, states: Sequence[Mapping[str, Tensor]], params: Mapping[str, Tensor], update: Update | None = None
    ) -> Mapping[str, Tensor]:
        """Return, like ``client_model``, the models that the communication changes, where clients use others."""
        del states, params, update
        return {}

    def stand_in(self, states: Sequence[Mapping[str, Tensor]], params: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return (K, ...) what only clients hold of the global model; its mean is measured, drawn and exported.

        Also called for zero clients.
        """
        del states, params
        return {}

    def diagnostics(self, state: ServerState, aggregate: Aggregate) -> dict[str, float]:
        """Return the method's own numbers for the round's log."""
        del state, aggregate
        return {}

    def sent(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave out what clients keep to themselves or do not train."""
        return {name: value for name, value in self.trained(tensors).items() if self.specs[name].kind != "local"}

    def trained(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Leave out what clients are given but never train, and what they count: such has one value for all."""
        return {name: value for name, value in tensors.items() if self.specs[name].kind in TRAINED_KINDS}


def recall(states: Sequence[Mapping[str, Tensor]], prefix: str, fallback: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stack what clients keep under ``prefix`` + name, (K, ...); who keeps nothing yet has the ``fallback``'s row."""
    return {
        name: torch.stack([state.get(prefix + name, value).to(value.device) for state in states])
        if states
        else value[None][:0]
        for name, value in fallback.items()
    }


def keep(states: Sequence[dict[str, Tensor]], prefix: str, tensors_K: Mapping[str, Tensor]) -> None:
    """Write row k of every tensor (K, ...) into the state of client k, under ``prefix`` + name."""
    for name, value in tensors_K.items():
        for state, row in zip(states, value.unbind(), strict=True):
            state[prefix + name] = row


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
