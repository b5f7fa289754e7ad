"""The sections of a config about local training, evaluation and saving."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedsim.config.base import Count, Positive, Words
from fedsim.config.mistakes import KeyedError, refuse_idle, show


class ConstantSchedule(Words):
    """The same learning rate in every round."""

    name: Literal["constant"] = Field(default="constant", description="The same learning rate in every round.")


class CosineSchedule(Words):
    """Half a cosine from lr in the first round to final * lr in the last."""

    name: Literal["cosine"] = Field(description="Half a cosine over the rounds.")
    final: Annotated[float, Field(ge=0, le=1)] = Field(default=0.0, description="Last round's learning rate / lr.")


class LinearSchedule(Words):
    """A straight line from lr in the first round to final * lr in the last."""

    name: Literal["linear"] = Field(description="A straight line over the rounds.")
    final: Annotated[float, Field(ge=0, le=1)] = Field(default=0.0, description="Last round's learning rate / lr.")


class InverseSchedule(Words):
    """lr / round, rounds counted from 1."""

    name: Literal["inverse"] = Field(description="lr divided by the number of the round.")


class StepSchedule(Words):
    """Multiplied by factor after every so many rounds."""

    name: Literal["step"] = Field(description="Multiplied by factor after every so many rounds.")
    every: Count = Field(description="Rounds between two steps.")
    factor: Annotated[float, Field(gt=0, le=1)] = Field(description="Multiplier of each step.")


ScheduleConfig = Annotated[
    ConstantSchedule | CosineSchedule | LinearSchedule | InverseSchedule | StepSchedule, Field(discriminator="name")
]
Beta = Annotated[float, Field(ge=0, lt=1)]
Memory = Annotated[float, Field(ge=0, le=1e6)]
ADAM_BETAS = (0.9, 0.999)


class TrainConfig(Words):
    """Local training of one client in one phase of a round."""

    optimizer: Literal["sgd", "adam", "adamw"] = Field(default="sgd", description="Local optimiser.")
    lr: Annotated[float, Field(gt=0, le=1000)] = Field(description="Learning rate.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Momentum of sgd.")
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = Field(
        default=ADAM_BETAS, description="Moments of adam and adamw."
    )
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=0.0, description="Weight decay; adamw's apart from the moments, others add it to the gradient."
    )
    batch_size: Count = Field(default=32, description="Images per step and client.")
    steps: Count | None = Field(default=None, description="Local steps per phase; null: epochs counts instead.")
    epochs: Count | None = Field(
        default_factory=lambda seen: 1 if seen.get("steps") is None else None,
        description="Passes over the client's images per phase. Default: 1 if steps is not given, else null.",
    )
    shuffle: bool = Field(default=True, description="Whether a client sees its images in a new order in each pass.")
    schedule: ScheduleConfig = Field(default=ConstantSchedule(), description="Learning rate over the rounds.")
    loss: Literal["cross_entropy", "focal", "ordinal", "dice", "dice_ce"] | None = Field(
        default=None,
        description="null: cross_entropy, for images with masks dice_ce: half the sum of cross-entropy and Dice loss. "
        "ordinal: for grades, the farther off the dearer.",
    )
    focal_gamma: Annotated[float, Field(gt=0, le=10)] = Field(default=2.0, description="Exponent of the focal loss.")
    class_weights: Literal["balanced"] | Annotated[tuple[Positive, ...], Field(strict=False)] | None = Field(
        default=None,
        description="The classes' weights in the loss; balanced: against the numbers of all training images.",
    )
    clip_norm: Positive | None = Field(default=None, description="Largest norm of a client's gradient; null: no limit.")
    keep_optimizer: bool = Field(default=False, description="Whether a client's optimiser state outlives the round.")

    @model_validator(mode="after")
    def _one_length_and_no_idle_keys(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise KeyedError("steps", f"epochs: {self.epochs} and steps: {self.steps}", "one of them; the other null")
        if self.epochs is None and self.steps is None:
            raise KeyedError("epochs", "epochs: null and steps: null", "one of them")
        if self.optimizer != "sgd" and self.momentum != 0:
            used = self.optimizer
            raise KeyedError("momentum", f"{self.momentum:g} with optimizer: {used}", f"0: {used} uses betas instead")
        if self.optimizer == "sgd" and self.betas != ADAM_BETAS:
            raise KeyedError("betas", f"{list(self.betas)} with optimizer: sgd", "no betas: sgd uses momentum")
        if self.loss != "focal":
            refuse_idle(self, ["focal_gamma"], f"loss: {show(self.loss)}")
        if self.keep_optimizer and self.optimizer == "sgd" and self.momentum == 0:
            raise KeyedError("keep_optimizer", "true with sgd without momentum", "false: there is nothing to keep")
        return self


# What the tasks measure, see ``Task.metrics``; also Dice and IoU of every class of masks, and AUROC of every finding.
Metric = Literal[
    "accuracy",
    "balanced_accuracy",
    "recall",
    "precision",
    "f1",
    "auroc",
    "average_precision",
    "quadratic_kappa",
    "f1_positive",
    "matthews",
    "spearman",
    "pearson",
    "mae",
    "dice",
    "iou",
    "dice_all",
    "iou_all",
    "loss",
]
ClassMetric = Annotated[str, Field(pattern=r"^(dice|iou|auroc)/.+$")]
#: Metrics of which less is better.
LESS_IS_BETTER = ("loss", "mae")


class EvaluateConfig(Words):
    """When the global model is measured, and which round counts as the best."""

    every: Count = Field(default=1, description="Rounds between two evaluations; the last round is always evaluated.")
    batch_size: Count = Field(
        default=64,
        description="Images per forward pass. With BatchNorm that keeps no running statistics scores depend on it.",
    )
    best_by: Metric | ClassMetric | None = Field(
        default=None,
        description="Validation metric that decides on the best round. null: accuracy; for images with masks dice, for "
        "numbers to be told spearman, for findings auroc. dice/CLASS, iou/CLASS, auroc/FINDING: of one alone.",
    )
    absent_class: Literal["skip", "zero"] = Field(
        default="skip",
        description="Dice and IoU of a class in an image whose mask and prediction both lack it: not counted, or 0, as "
        "in HarmoFL's code.",
    )
    max_val: Count | None = Field(
        default=None,
        description="Validation images that a run uses at most, classes in proportion, the same in every round; null: "
        "all.",
    )
    test: Literal["always", "at_end"] = Field(
        default="always",
        description="always: test images are scored with the validation images; at_end: once, by the best round's "
        "model.",
    )
    patience: Count | None = Field(
        default=None, description="Stop after this many evaluations without a better one; null: never."
    )
    clients: bool = Field(
        default=False,
        description="Whether each client's own model is measured on its own images, before and after communication.",
    )

    @property
    def splits(self) -> tuple[str, ...]:
        """What is measured after a round."""
        return ("val", "test") if self.test == "always" else ("val",)

    @model_validator(mode="after")
    def _clients_are_tested_always(self) -> Self:
        if self.clients and self.test == "at_end":
            raise KeyedError("test", "at_end with clients: true, which scores each client's test images", "always")
        return self


class CheckpointConfig(Words):
    """How often the state is saved, and how many saved states are kept."""

    every: Count = Field(default=1, description="Rounds between two checkpoints; the last round is always saved.")
    keep: Count = Field(default=2, description="Latest checkpoints kept, beside the best.")


class StoreConfig(Words):
    """How much memory the states that clients keep between rounds may take on each rank; the disk takes the rest."""

    device_gib: Memory = Field(default=1.0, description="GiB on a GPU, per rank; without a GPU it has no meaning.")
    host_gib: Memory | None = Field(default=None, description="GiB of host memory, per rank; null: no limit.")
