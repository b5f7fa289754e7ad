"""What a method is given and what it gives back: facts, phases, server states, starts, batches, updates, payloads.

Methods import all of it from ``algorithms.base``. What belongs together has a group name, and in the group names of
tensors: a method never puts names together or takes them apart.

Shapes: K clients in a block, M models of a client, B images of a client at a step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fedsim.config.train import TrainConfig
from fedsim.models.specs import Kind, ParamSpec

Tensors = Mapping[str, Tensor]
Groups = Mapping[str, Tensors]
#: The gradient at trained parameters, of the losses of the step's clients.
GradOf = Callable[[Tensors], Tensors]
#: A step's gradient by name; a parameter with None stands still, whatever momentum and weight decay there are.
Gradients = Mapping[str, Tensor | None]

TRAINED_KINDS: frozenset[Kind] = frozenset({"lora_a", "lora_b", "magnitude", "head", "body", "norm", "buffer", "local"})
#: The group of a payload that holds changes of parameters under the parameters' own names.
PARAMS = "params"


@dataclass(frozen=True)
class Facts:
    """What a method may know of the run: the model's parameters, and how many rounds and clients there are.

    ``clients_per_round``: how many have images and take part in a round; on average, where that is drawn by coins.
    ``seed``: of the run, for what the server draws. ``sums_alone``: whether nobody may read a single client's message,
    so that a payload may have no ``gather``.
    ``ranks``: of every client, how many rows of LoRA's A and columns of B it has; the others are given to it as zeros
    and stay so. ``scales``: of every client's B A beside the server's, by which its update is larger than its factors
    tell. Both None where all clients have all ranks.
    """

    specs: Mapping[str, ParamSpec]
    num_rounds: int
    num_clients: int
    train: TrainConfig
    clients_per_round: float
    seed: int = 0
    sums_alone: bool = False
    ranks: tuple[int, ...] | None = None
    scales: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Phase:
    """One local training and one aggregation; a round has one or more. Only parameters of these kinds train.

    ``models``: M models that a client trains side by side on the same batches; what has a client axis then has an
    axis of models behind it, (K, M, ...). ``counts_padding``: whether what is counted per token is so at the padding
    of texts, too.
    """

    name: str = "train"
    kinds: frozenset[Kind] = TRAINED_KINDS
    models: int = 1
    counts_padding: bool = False


@dataclass(frozen=True)
class ServerState:
    """What the server holds after ``round`` rounds; equal on every rank.

    ``params``: the global model's trainable part, by name; ``extra``: the method's own tensors (moments ...);
    ``layers``: those of the privacy layers; ``older``: of asynchronous rounds, the states by their rounds that clients
    on the way began from. No method touches these two.
    """

    round: int
    params: dict[str, Tensor]
    extra: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, Tensor] = field(default_factory=dict)
    older: dict[int, "ServerState"] = field(default_factory=dict)

    def to(self, device: torch.device) -> "ServerState":
        """Return the state with its tensors on ``device``."""
        params, extra, layers = (
            {name: value.to(device) for name, value in tensors.items()}
            for tensors in (self.params, self.extra, self.layers)
        )
        older = {round: state.to(device) for round, state in self.older.items()}
        return replace(self, params=params, extra=extra, layers=layers, older=older)


@dataclass(frozen=True)
class Start:
    """Where a block's clients begin a phase.

    ``params``: what they have in place of the server's parameters, (K, ...) or (K, M, ...); some may be parameters that
    the phase does not train, or a ``RANK`` below a client's own. ``context``: what else the phase's hooks see, by group
    and name, (K, ...). A group that clients keep is their own; all other groups come from the server, and are counted
    as going down.
    """

    params: Tensors = field(default_factory=dict)
    context: Groups = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One local step of a block, before the model has seen its images.

    ``targets`` (K, B), or what else the task has. ``weights`` (K, B): one over the client's batch size for its images
    (the expected one of a Poisson sample), zero for the places that a smaller batch leaves empty. ``trained``: the
    names of the parameters that the phase trains. ``start``: the server's parameters that the phase began from, without
    a client axis. ``context``: see ``Start``. ``number``: of the step in its local training, from 0. ``lr``: the
    step's learning rate. ``chance`` (K,): a number of each client's own, float64, uniform over 0..1 without the 1; it
    stays for one pass over the client's images, for what a method draws anew in each.
    """

    phase: Phase
    targets: Tensor
    weights: Tensor
    trained: tuple[str, ...]
    start: Tensors
    context: Groups
    number: int
    lr: float
    chance: Tensor


@dataclass(frozen=True, kw_only=True)
class Batch(Step):
    """A step as the loss sees it.

    ``logits`` (K, B, C), or what else the task has for outputs; with M > 1 models (K, M, B, C). ``params``: those that
    a client has for its own with a client axis, others without. ``features`` (K, B, ...): what the classifier sees.
    ``features_of``: the same from other parameters, all of them and with or without a client axis; without gradient,
    running statistics used and not changed. ``criterion``: the task's loss, see ``task_loss``.
    """

    logits: Tensor
    params: Tensors
    features: Tensor
    features_of: Callable[[Tensors], Tensor]
    criterion: Callable[[Tensor, Tensor, Tensor], Tensor]

    @cached_property
    def task_loss(self) -> Tensor:
        """Each client's loss of the task alone, (K,): mean cross-entropy for classification.

        Computed once, so that the engine knows a method that returns it as it is.
        """
        return self.criterion(self.logits, self.targets, self.weights)


@dataclass(frozen=True, kw_only=True)
class Update:
    """What K clients bring back from a phase.

    ``after``: their trained parameters, (K, ...) or (K, M, ...). ``before``: the server's that they were given, without
    a client axis: a block's clients begin from one state. ``context``: see ``Start``. ``weights``: float64 (K,),
    summing to one over all clients of the round, ``cohort``. ``kept``: one mapping per client, which outlives the
    round, see ``recall`` and ``keep``. ``round`` counts from 1. ``num_steps``: the steps that each client took, int64
    (K,), with learning rate ``lr`` and this ``momentum``, zero for optimisers that have none.
    """

    round: int
    phase: Phase
    clients: tuple[int, ...]
    cohort: tuple[int, ...]
    weights: Tensor
    before: Tensors
    after: Tensors
    context: Groups
    kept: list[dict[str, Tensor]]
    num_steps: Tensor
    lr: float
    momentum: float

    @cached_property
    def delta(self) -> dict[str, Tensor]:
        """Local minus global, float64 (K, ...) by name."""
        copies = {
            name: value.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
            for name, value in self.after.items()
        }
        return {name: value.sub_(self.before[name].double()) for name, value in copies.items()}


@dataclass(frozen=True)
class Payload:
    """What a block sends, by group and name, each tensor with a leading client axis.

    ``mean``: to be averaged with the clients' weights; ``total``: to be added up; both exactly.
    ``gather``: to be collected, one row per client.
    """

    mean: Groups = field(default_factory=dict)
    total: Groups = field(default_factory=dict)
    gather: Groups = field(default_factory=dict)


@dataclass(frozen=True)
class Aggregate:
    """The payloads of all clients together, the same bits on every rank.

    Means and totals in float64; what was gathered is (K, ...), K all ``clients`` of the round in their order. Where
    secure aggregation loses some, or the training of some diverged, ``clients`` are the others, and means are weighted
    among them; weights that were gathered are still those among all.
    """

    clients: tuple[int, ...]
    mean: Groups = field(default_factory=dict)
    total: Groups = field(default_factory=dict)
    gather: Groups = field(default_factory=dict)
