"""What a method is given and what it gives back: phases, the server's state, batches, updates, payloads, aggregates.

Methods import all of it from ``algorithms.base``. Shapes: K clients in a block, M models of a client.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fedsim.config_distill import DistillSettings
from fedsim.models.specs import Kind
from fedsim.tasks import cross_entropy

TRAINED_KINDS: frozenset[Kind] = frozenset({"lora_a", "lora_b", "head", "body", "norm", "buffer", "local"})


@dataclass(frozen=True)
class Phase:
    """One local training and one aggregation; a round has one or more. Only parameters of these kinds train.

    ``models``: M models that a client trains side by side on the same batches; what has a client axis then has an
    axis of models behind it, (K, M, ...). ``assess_on``: the client's own images on which its models are scored
    before each of several local passes, see ``Algorithm.assess``. ``counts_padding``: whether what is counted per
    token is so at the padding of texts, too.
    """

    name: str = "train"
    kinds: frozenset[Kind] = TRAINED_KINDS
    models: int = 1
    assess_on: Literal["train", "val"] | None = None
    counts_padding: bool = False


@dataclass(frozen=True)
class ServerState:
    """What the server holds after ``round`` rounds; equal on every rank.

    ``params``: the global model's trainable part, by name; ``extra``: the method's own tensors (moments ...).
    """

    round: int
    params: dict[str, Tensor]
    extra: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> "ServerState":
        """Return the state with its tensors on ``device``."""
        params, extra = (
            {name: value.to(device) for name, value in tensors.items()} for tensors in (self.params, self.extra)
        )
        return replace(self, params=params, extra=extra)


@dataclass(frozen=True)
class Batch:
    """One local step of a block, as the loss sees it.

    ``logits`` (K, B, C) and ``labels`` (K, B), or what else the task has for outputs and targets. ``weights`` (K, B):
    one over the client's batch size for its images, zero for the places that a smaller batch leaves empty.
    ``params``: trained parameters with, others without, a client axis. ``start``: the server's parameters that the
    phase began from, without one. ``phase``: its name. ``decided``: what ``Algorithm.assess`` returned before this
    local pass, if it was asked. With M > 1 models per client ``logits`` is (K, M, B, C) and ``params`` are
    (K, M, ...). ``criterion``: the task's loss, see ``task_loss``. ``states``: what the clients keep, to be read.
    ``features`` (K, B, ...): what the classifier sees. ``features_of``: the same from other parameters, all of them
    and with or without a client axis; without gradient, running statistics used and not changed.
    """

    logits: Tensor
    labels: Tensor
    weights: Tensor
    params: Mapping[str, Tensor]
    trained: tuple[str, ...]
    start: Mapping[str, Tensor]
    phase: str = "train"
    decided: Mapping[str, Tensor] = field(default_factory=dict)
    criterion: Callable[[Tensor, Tensor, Tensor], Tensor] = cross_entropy
    states: Sequence[Mapping[str, Tensor]] = ()
    features: Tensor = field(default_factory=lambda: torch.empty(0))
    features_of: Callable[[Mapping[str, Tensor]], Tensor] = lambda _: torch.empty(0)

    @property
    def task_loss(self) -> Tensor:
        """Each client's loss of the task alone, (K,): mean cross-entropy for classification."""
        return self.criterion(self.logits, self.labels, self.weights)


@dataclass(frozen=True)
class Update:
    """What K clients bring back from a phase.

    ``after``: their trained parameters, (K, ...) or (K, M, ...); ``before``: the server's. ``weights``: float64
    (K,), summing to one over all clients of the round. ``states``: one mapping per client, which outlives the
    round and may be changed in place. ``round`` counts from 1. ``num_steps``: the steps that each client took, int64
    (K,), with this ``momentum``, zero for optimisers that have none. ``cohort``: all clients of the round.
    """

    round: int
    phase: Phase
    clients: tuple[int, ...]
    weights: Tensor
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    states: list[dict[str, Tensor]]
    num_steps: Tensor
    momentum: float
    cohort: tuple[int, ...] = ()

    @cached_property
    def delta(self) -> dict[str, Tensor]:
        """Local minus global, float64 (K, ...) by name."""
        return {name: value.double() - self.before[name].double() for name, value in self.after.items()}


@dataclass(frozen=True)
class Payload:
    """What a block sends, each tensor with a leading client axis.

    ``mean``: to be averaged with the clients' weights; ``total``: to be added up; both exactly.
    ``gather``: to be collected on the server, one row per client.
    """

    mean: Mapping[str, Tensor] = field(default_factory=dict)
    total: Mapping[str, Tensor] = field(default_factory=dict)
    gather: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Aggregate:
    """The payloads of all clients together: means and totals in float64, the same bits on every rank."""

    clients: tuple[int, ...]
    mean: Mapping[str, Tensor]
    total: Mapping[str, Tensor]


@dataclass(frozen=True)
class Alignment:
    """What of the clients' sub-model the server distils anew after a round, towards the full model.

    ``trained``: proxy parameters by name, each with a bool tensor of its shape, true where an element trains; all else
    stays. ``student``: parameters that the sub-model has meanwhile in place of the server's, which the full model has.
    """

    trained: Mapping[str, Tensor]
    student: Mapping[str, Tensor]
    settings: DistillSettings
