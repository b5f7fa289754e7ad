"""FedPFT: clients tune LoRA on a compressed sub-model, which the server keeps close to its full model.

Shapes: K clients in a block, R neurons of a cut feed-forward.
"""

import random
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedsim.algorithms.base import PARAMS, TRAINED_KINDS, Aggregate, Facts, Payload, Phase, ServerState, Update, beside
from fedsim.algorithms.parts.abilities import Aligning, Alignment
from fedsim.config.distill import DistillSettings, DistillSteps
from fedsim.config.mistakes import refuse_idle
from fedsim.errors import UserError
from fedsim.models.specs import NUM_TOKENS, PROXIES, ZEROS, ParamSpec

COUNTS, LAST = "counts", "last"
Form = Literal["paper", "released"]


class AlignmentSteps(DistillSteps):
    """The steps of one alignment."""

    epochs: float = Field(
        default=0.02, gt=0, le=1e6, description="Passes over the inputs; 0.02 is one step out of fifty."
    )


class FedPFT(Aligning):
    """Peng et al., FedPFT: Federated proxy fine-tuning of foundation models, IJCAI 2024 (arXiv 2404.11536).

    What clients tune on the sub-model (``model.submodel``) is averaged as in FedAvg and, having the same names in the
    full model, plugged into it in every round. Every ``align_interval`` rounds the server distils neurons of the
    sub-model anew: those whose activation was zero most often in the clients' training (APoZ, Hu et al., Network
    trimming, 2016, equation 1), counted over the round as exact sums.

    Two forms. ``paper``: the sub-model carries the aggregated adapter in its distillation, as the full model does;
    equal counts are ordered by the neuron's number; there is no alignment after the last round, which nobody would use.
    ``released``, as in the published code: the adapter of the client with the highest number of the round (it travels
    a second time, and is counted in bytes_up), equal counts in random order, no weight on the error of the
    matrices' product, alignment after the last round too, and the padding of texts counts like tokens.
    """

    summary = "LoRA on a compressed sub-model, aligned with the full model by distillation (Peng et al., 2024)"

    class Config(Aligning.Config):
        form: Form = Field("paper", description="Choice of neurons, and the student: as in the paper, or as released.")
        align_interval: Annotated[int, Field(ge=1)] | None = Field(
            1, description="Rounds between two alignments of the sub-model; null: none."
        )
        retained_ratio: float = Field(
            0.5, ge=0, lt=1, description="Share of a layer's neurons, those least often zero, that alignment leaves."
        )
        alpha: Annotated[float, Field(ge=0, le=1e6)] = Field(
            default_factory=lambda seen: 0.0 if seen.get("form") == "released" else 0.01,
            description="Weight of the error of the feed-forward's product of matrices. Default: 0.01; released: 0.",
        )
        distill: AlignmentSteps = Field(AlignmentSteps(), description="The steps of one alignment.")

        @model_validator(mode="after")
        def _alignment_is_used(self) -> Self:
            if self.align_interval is None:
                refuse_idle(self, ["form", "retained_ratio", "alpha", "distill"], "align_interval: null")
            elif self.form == "released":
                refuse_idle(self, ["alpha"], "form: released, where that error has no gradient")
            return self

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        self.layers = sorted(int(name.removeprefix(ZEROS)) for name in self.specs if name.startswith(ZEROS))
        if not self.layers:
            found = "none that names a folder, with algorithm.name: fedpft"
            raise UserError("model.submodel", found, "{folder: DIR}, a folder that launch.py distill made")
        aligns = any(map(self.aligns_after, range(1, facts.num_rounds + 1)))
        if aligns:
            self.assumes_true_sums = "counts of tokens travel beside the changes"
        if config.form == "released" and aligns:
            self.reads_alone = "the last client's adapter, by its form: released"

    def aligns_after(self, round: int) -> bool:
        interval = self.config.align_interval
        is_idle = round == self.facts.num_rounds and self.config.form == "paper"
        return interval is not None and round % interval == 0 and not is_idle

    def phases(self, round: int) -> tuple[Phase, ...]:
        if not self.aligns_after(round):
            return (Phase(),)
        return (Phase(kinds=TRAINED_KINDS | {"count"}, counts_padding=self.config.form == "released"),)

    def pre_aggregate(self, update: Update) -> Payload:
        counts = {name: value for name, value in update.after.items() if self.specs[name].kind == "count"}
        mean = {PARAMS: self.sent(update.delta)}
        total = {COUNTS: counts} if counts else {}
        if not counts or self.config.form == "paper":
            return Payload(mean=mean, total=total)
        last = max(update.cohort, default=None)
        is_last = torch.tensor([client == last for client in update.clients], dtype=torch.bool)
        adapter = {
            name: torch.where(beside(is_last, value), value, 0)
            for name, value in update.after.items()
            if self.specs[name].kind in ("lora_a", "lora_b")
        }
        return Payload(mean=mean, total=total | {LAST: adapter})

    def align(self, state: ServerState, aggregate: Aggregate, seed: int) -> Alignment:
        """Train the chosen neurons: rows of the inner matrix and bias, columns of the outer; and what has no neurons.

        That is the outer bias and, in a BERT, the LayerNorm after it.
        """
        shuffle = random.Random(seed).shuffle if self.config.form == "released" else None
        trained = {}
        for layer in self.layers:
            chosen = neurons_to_distil(aggregate.total[COUNTS][f"{ZEROS}{layer}"], self.config.retained_ratio, shuffle)
            for name, spec in self.specs.items():
                if name.startswith(f"{PROXIES}{layer}."):
                    trained[name] = elements_of(chosen, spec)
        student = {name: value.to(state.params[name]) for name, value in aggregate.total.get(LAST, {}).items()}
        steps = self.config.distill.model_dump()
        return Alignment(trained, student, DistillSettings(alpha=self.config.alpha, form=self.config.form, **steps))

    def diagnostics(self, state: ServerState, aggregate: Aggregate) -> dict[str, float]:
        """The mean APoZ over all neurons, and how many were never zero: among them their number decides."""
        if COUNTS not in aggregate.total:
            return {}
        counts = aggregate.total[COUNTS]
        zeros = torch.cat([counts[f"{ZEROS}{layer}"] for layer in self.layers])
        share = apoz(zeros, counts[NUM_TOKENS])
        return {"apoz": share.mean().item(), "never_zero": int((zeros == 0).sum())}


def apoz(zeros_R: Tensor, num_tokens: Tensor) -> Tensor:
    """Return each neuron's average percentage of zeros as a share, float64 (R,) (Hu et al., 2016, equation 1).

    Counts are int64. A round's clients all have training data, so that there are tokens.
    """
    return zeros_R.double() / num_tokens.double()


def neurons_to_distil(zeros_R: Tensor, retained_ratio: float, shuffle: Any = None) -> Tensor:
    """Return which neurons are distilled, bool (R,): all but the share ``retained_ratio`` with the lowest APoZ.

    All have the same number of tokens, so the zeros decide. Equal ones are in the order of their numbers, or of a
    list of the numbers that ``shuffle`` changes in place.
    """
    order = list(range(len(zeros_R)))
    if shuffle is not None:
        shuffle(order)
    zeros: list[int] = zeros_R.tolist()
    retained = sorted(order, key=zeros.__getitem__)[: int(len(order) * retained_ratio)]
    chosen = torch.ones(len(order), dtype=torch.bool)
    chosen[retained] = False
    return chosen


def elements_of(neurons_R: Tensor, spec: ParamSpec) -> Tensor:
    """Return which elements of a proxy belong to neurons, bool of its shape; all where its axes are no neurons."""
    if spec.neuron_axis is None:
        return torch.ones(spec.shape, dtype=torch.bool)
    shape = [1] * len(spec.shape)
    shape[spec.neuron_axis] = -1
    return neurons_R.view(shape).expand(spec.shape)
