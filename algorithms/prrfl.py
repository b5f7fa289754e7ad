"""PRR-FL: clients share low-frequency amplitudes of their weights, and learn from them through a deputy.

Every client has two models. The deputy is the one that takes part in the communication; the personal model is the
one that the client uses, and no communication touches it. In local training the two see the same batches and learn
from the labels, and, depending on how far the deputy has recovered from the communication, from each other.

Shapes: K clients in a block, M = 2 models of a client (0 deputy, 1 personal), B batch, C classes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from fedsim.algorithms.base import (
    PARAMS,
    Aggregate,
    Batch,
    Facts,
    Groups,
    Payload,
    Phase,
    ServerState,
    Start,
    Tensors,
    Update,
    keep,
    recall,
)
from fedsim.algorithms.parts.abilities import ASSESSED, Assessing
from fedsim.algorithms.parts.fourier import Form, from_matrices, low_amplitudes, to_matrices, with_low_amplitudes
from fedsim.algorithms.parts.own_ranks import refuse_ranks
from fedsim.config.mistakes import KeyedError, refuse_idle
from fedsim.config.train import TrainConfig
from fedsim.errors import UserError
from fedsim.models.specs import ParamSpec

DEPUTY, PERSONAL = "deputy", "own"
AMPLITUDES = "amplitudes"
RECOVER, EXCHANGE, SUBLIMATE, UNKNOWN = 1, 2, 3, 4


class PRRFL(Assessing):
    """Chen et al., Personalized retrogress-resilient framework for real-world medical FL, MICCAI 2021.

    Progressive Fourier aggregation (section 2.1) of all convolutions, linear layers and LoRA factors; BatchNorm stays
    with the deputies; biases and the like are averaged. Deputy-enhanced transfer (section 2.2) between the models.

    Two forms. ``paper``: symmetric window, amplitudes averaged with the clients' weights, ``low_freq_end`` reached in
    the last round. ``released``, as in the published code: half-open window, plain mean over the clients present,
    and the last round a step short of ``low_freq_end``.

    What is measured as the server's share of a transformed tensor is the mean of the deputies'. A client that takes
    part for the first time starts from the server's, which nobody trains: the initial one.
    """

    summary = "Fourier aggregation, and a deputy for each personal model (Chen et al., 2021)"
    assumes_true_sums = "amplitudes travel as they are, not as changes"
    keeps = (DEPUTY, PERSONAL)
    returns_aggregate = True

    class Config(Assessing.Config):
        form: Form = Field("paper", description="Window and mean of the aggregation: of the paper, or as released.")
        low_freq_start: float = Field(0.7, ge=0, le=1, description="Share of frequencies averaged in the first round.")
        low_freq_end: float = Field(0.95, ge=0, le=1, description="Share of frequencies averaged at the end.")
        alpha1: float = Field(0.7, ge=0, le=1, description="Deputy's F1 / personal F1 from which both learn.")
        alpha2: float = Field(0.9, ge=0, le=1, description="Deputy's F1 / personal F1 from which the deputy teaches.")
        decide_on: Literal["val", "train"] = Field(
            "val", description="Each client's own images that the F1 is measured on; released: train."
        )

        @model_validator(mode="after")
        def _stages_in_order(self) -> Self:
            if self.alpha1 > self.alpha2:
                raise KeyedError("alpha1", f"{self.alpha1:g}", f"at most alpha2 = {self.alpha2:g}")
            if self.low_freq_start > self.low_freq_end:
                found, end = f"{self.low_freq_start:g}", f"{self.low_freq_end:g}"
                raise KeyedError("low_freq_start", found, f"at most low_freq_end = {end}: the share grows")
            return self

        def check_training(self, train: TrainConfig) -> None:
            """The stages are decided before each local pass but the first."""
            if train.epochs is None or train.epochs == 1:
                passes = f"train.steps: {train.steps}" if train.epochs is None else "train.epochs: 1"
                refuse_idle(self, ["alpha1", "alpha2", "decide_on"], f"{passes}: no stages", "algorithm.")

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        refuse_ranks(facts, "prrfl")
        self.transformed = [name for name, spec in self.specs.items() if is_transformed(spec)]
        self.averaged = [
            name
            for name, spec in self.trained(self.specs).items()
            if not is_transformed(spec) and spec.kind not in ("norm", "buffer")
        ]
        if self.averaged and not self.transformed:
            raise UserError("algorithm.name", f"prrfl on a model that trains {self.averaged}", "matrices, convolutions")

    def phases(self, round: int) -> tuple[Phase, ...]:
        return (Phase(models=2),)

    @property
    def assess_on(self) -> Literal["train", "val"]:
        return cast(Literal["train", "val"], self.config.decide_on)

    def sent(self, tensors: Tensors) -> dict[str, Tensor]:
        averaged = [name for name in self.averaged if name in tensors]
        return super().sent({name: tensors[name] for name in averaged})

    def begin(self, state: ServerState, phase: Phase, kept: Sequence[Tensors]) -> Start:
        deputy, personal = (recall(kept, group, self.trained(state.params)) for group in self.keeps)
        return Start({name: torch.stack([deputy[name], personal[name]], dim=1) for name in deputy})

    def assess(self, f1_KM: Tensor, previous: Tensors) -> Tensors:
        """Decide each client's stage."""
        before = previous.get("stage", torch.zeros(len(f1_KM), dtype=torch.int64, device=f1_KM.device))
        return {"stage": next_stage(before, f1_KM[:, 0], f1_KM[:, 1], self.config.alpha1, self.config.alpha2)}

    def loss(self, batch: Batch) -> Tensor:
        """The task's loss of both models, and the divergence from the other for those whom the stage lets learn."""
        task_KM, kl_KM = transfer_terms(batch.logits, batch.targets, batch.weights, batch.criterion)
        if ASSESSED in batch.context:
            kl_KM = learners(batch.context[ASSESSED]["stage"]) * kl_KM
        # A round of a single local pass leaves no time to recover first: there both learn, as in the published code.
        return (task_KM + kl_KM).sum(1)

    def pre_aggregate(self, update: Update) -> Payload:
        deputy, personal = ({name: value[:, row] for name, value in update.after.items()} for row in (0, 1))
        keep(update.kept, DEPUTY, deputy)
        keep(update.kept, PERSONAL, personal)
        fraction, form = self.low_freq(update.round), self.config.form
        amplitudes = {name: low_amplitudes(to_matrices(deputy[name]), fraction, form) for name in self.transformed}
        change = {name: value.double() - update.before[name].double() for name, value in self.sent(deputy).items()}
        if form == "released":
            return Payload(mean={PARAMS: change}, total={AMPLITUDES: amplitudes})
        return Payload(mean={PARAMS: change, AMPLITUDES: amplitudes})

    def receive(self, state: ServerState, kept: Sequence[dict[str, Tensor]], aggregate: Aggregate) -> None:
        """Give the deputies the mean amplitudes and the averaged tensors; the personal models stay as they are."""
        fraction, form = self.low_freq(state.round + 1), self.config.form
        deputies = recall(kept, DEPUTY, {name: state.params[name] for name in self.transformed})
        for name, value in deputies.items():
            amplitude = self._mean_amplitude(name, aggregate)
            mixed = with_low_amplitudes(to_matrices(value), amplitude.to(value.device), fraction, form)
            deputies[name] = from_matrices(mixed, value)
        shared = self.sent(state.params)
        keep(kept, DEPUTY, deputies | {n: v.expand(len(kept), *v.shape) for n, v in shared.items()})

    def client_params(self, kept: Sequence[Tensors], params: Tensors, update: Update | None = None) -> Groups:
        own, exchanged = (recall(kept, group, self.trained(params)) for group in (PERSONAL, DEPUTY))
        return {"own": own, "exchanged": exchanged}

    def diagnostics(self, state: ServerState, aggregate: Aggregate) -> dict[str, float]:
        """The share of frequencies, and what is sent relative to the weights, both counted in numbers."""
        trained = self.trained(self.specs).values()
        full = sum(math.prod(spec.shape) for spec in trained if spec.kind not in ("norm", "buffer"))
        groups = (*aggregate.mean.values(), *aggregate.total.values())
        sent = sum(value.numel() for group in groups for value in group.values())
        return {"low_freq": self.low_freq(state.round + 1), "sent_per_weight": sent / full}

    def low_freq(self, round: int) -> float:
        """Return the fraction of frequencies that is averaged in a round, counted from 1."""
        steps = self.facts.num_rounds if self.config.form == "released" else max(1, self.facts.num_rounds - 1)
        start: float = self.config.low_freq_start
        end: float = self.config.low_freq_end
        return start + (round - 1) / steps * (end - start)

    def _mean_amplitude(self, name: str, aggregate: Aggregate) -> Tensor:
        if self.config.form == "released":
            return aggregate.total[AMPLITUDES][name] / len(aggregate.clients)
        return aggregate.mean[AMPLITUDES][name]


def is_transformed(spec: ParamSpec) -> bool:
    """Whether a parameter is aggregated by its spectrum: matrices, convolutions, and LoRA's stacks of matrices."""
    num_axes = len(spec.shape)
    if spec.kind in ("lora_a", "lora_b"):
        return num_axes == 3
    return spec.kind in ("body", "head") and num_axes in (2, 4)


def next_stage(previous_K: Tensor, deputy_K: Tensor, personal_K: Tensor, alpha1: float, alpha2: float) -> Tensor:
    """Return the coming stage of each client, int64 (K,), from the last one (0: none yet) and the models' F1.

    Recover (1) until the deputy's F1 reaches alpha1 of the personal model's, and again when it falls below; then
    exchange (2); sublimate (3) from alpha2 on, but never straight after recovering. Nan makes it unknown (4),
    which counts as exchange. Section 2.2, with the transitions of the published code.
    """
    recovered = deputy_K >= alpha1 * personal_K
    strong = deputy_K >= alpha2 * personal_K
    later = torch.where(strong, SUBLIMATE, torch.where(recovered, EXCHANGE, RECOVER))
    stage = torch.where(previous_K >= EXCHANGE, later, torch.where(recovered, EXCHANGE, RECOVER))
    stage = torch.where(torch.isnan(deputy_K + personal_K), UNKNOWN, stage)
    return torch.where(previous_K == 0, RECOVER, stage)


def learners(stage_K: Tensor) -> Tensor:
    """Return which models learn from the other, bool (K, M): the deputy but in stage 3, the personal but in 1."""
    return torch.stack([stage_K != SUBLIMATE, stage_K != RECOVER], dim=1)


def transfer_terms(
    logits: Tensor, labels: Tensor, weights: Tensor, criterion: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the task's loss and KL(other || own) of each model, both (K, M), as weighted sums over the batch.

    ``logits`` (K, M, B, C), ``labels`` and ``weights`` (K, B); ``criterion``: the task's loss, of rows of them. The
    other model is a teacher: it gets no gradient.
    """
    num_models = logits.shape[1]
    of_rows = (value.repeat_interleave(num_models, 0) for value in (labels, weights))
    task_KM = criterion(logits.flatten(0, 1), *of_rows).unflatten(0, (-1, num_models))
    log_p = logits.float().log_softmax(-1)
    divergence = F.kl_div(log_p, log_p.detach().flip(1), reduction="none", log_target=True).sum(-1)
    return task_KM, (divergence * weights[:, None]).sum(-1)
