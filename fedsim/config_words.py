"""The words of a config as typed models: each field with its type, range, default and meaning.

All models are frozen and refuse unknown keys. Types are strict: "5" is no number, true is no integer, 1 is a
float, nan and inf are nothing. What single fields cannot say (two keys that exclude each other) is checked by
the validators below, so that a ``Config`` that exists can be run.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsim.config_errors import KeyedError, nearest

MEDMNIST_FLAGS = (
    *("pathmnist", "chestmnist", "dermamnist", "octmnist", "pneumoniamnist", "retinamnist"),
    *("breastmnist", "bloodmnist", "tissuemnist", "organamnist", "organcmnist", "organsmnist"),
)
DATA_NAMES = (
    *("brain_mri", "dermoscopy_pairs", "digits", "image_folder"),
    *(f"medmnist:{flag}" for flag in MEDMNIST_FLAGS),
)
PACKAGED_MODELS = ("packaged:vit_small_dino",)
MODEL_FORMS = (
    *PACKAGED_MODELS,
    "timm:NAME",
    "open_clip:NAME",
    "open_clip:hf-hub:ID",
    "open_clip:local-dir:PATH",
)

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Whole = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Share = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Scalar = bool | int | float | str


def is_open_clip(name: str) -> bool:
    """Whether a model name asks for an open_clip model, which brings a text tower."""
    return name.startswith("open_clip:")


def check_model_name(name: str) -> None:
    """Refuse names without a known prefix, an unknown packaged model, or nothing after the prefix."""
    prefix, _, rest = name.partition(":")
    complete = bool(rest) and not rest.startswith(":") and rest not in ("hf-hub:", "local-dir:")
    if name in PACKAGED_MODELS or (prefix in ("timm", "open_clip") and complete and rest.strip() == rest):
        return
    raise KeyedError("name", repr(name), nearest(name, MODEL_FORMS))


class Words(BaseModel):
    """Base of every section: immutable, strict, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class AlgorithmConfig(Words):
    """The method and, beside its name, the method's own keys (checked by the method's own ``Config``)."""

    model_config = ConfigDict(extra="allow")

    name: Text = Field("fedavg", description="Method: a known name, or package.module.Class of your own.")

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own keys, without ``name``."""
        return dict(self.model_extra or {})


class LoraConfig(Words):
    """LoRA in the words of peft."""

    r: Count = Field(8, description="Rank of the factors.")
    lora_alpha: Positive = Field(8.0, description="Scale; the update is (lora_alpha / r) * B A.")
    target: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)] = Field(
        ("q", "k", "v"),
        description="q, k, v: slices of a fused qkv; other words: nn.Linear modules by suffix (proj, fc1).",
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.target)) < len(self.target):
            raise KeyedError("target", f"{list(self.target)}", "each target once")
        return self


class ModelConfig(Words):
    """The image encoder, what of it is trained, and the classifier on top."""

    name: Text = Field(description="One of: " + ", ".join(MODEL_FORMS) + ".")
    weights: Text | None = Field(
        None,
        description="null: the name's own pretrained weights; random: drawn from seed; or a .safetensors file.",
    )
    options: dict[str, Scalar | list[Scalar]] = Field(
        {}, description="Passed to timm.create_model (timm: names only): patch_size, embed_dim, depth, ..."
    )
    lora: LoraConfig | None = Field(None, description="LoRA factors on the encoder; null for none.")
    train: Literal["lora", "head", "all"] = Field(
        default_factory=lambda seen: "lora" if seen.get("lora") else "all",
        description="What the clients train beside the head. Default: lora if lora is given, else all.",
    )
    classifier: Literal["linear", "text"] = Field(
        default_factory=lambda seen: "text" if is_open_clip(seen.get("name", "")) else "linear",
        description="linear: a trained layer; text: frozen text features of the class prompts. "
        "Default: text for open_clip, else linear.",
    )
    prompt: Text = Field(
        "a photo of a {}.", description="Class prompt of the text classifier; {} is the class name."
    )
    train_logit_scale: bool = Field(False, description="Whether the text classifier's scale is trained.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the encoder's products.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_model_name(self.name)
        if self.options and not self.name.startswith("timm:"):
            raise KeyedError("options", f"options for {self.name}", "none: only timm: names take options")
        if self.weights not in (None, "random") and not str(self.weights).endswith(".safetensors"):
            raise KeyedError(
                "weights", repr(self.weights), "null, random, or the path of a .safetensors file"
            )
        if self.train == "lora" and self.lora is None:
            raise KeyedError("lora", "null with train: lora", "a lora section, or train: head or all")
        if self.train != "lora" and self.lora is not None:
            raise KeyedError("lora", f"a lora section with train: {self.train}", "lora: null, or train: lora")
        if self.prompt.count("{}") != 1:
            raise KeyedError("prompt", repr(self.prompt), "a text with {} once, for the class name")
        if self.classifier == "text":
            self._check_text()
        elif self.train_logit_scale or self.prompt != type(self).model_fields["prompt"].default:
            key = "train_logit_scale" if self.train_logit_scale else "prompt"
            raise KeyedError(key, f"{key} with classifier: linear", "classifier: text, which alone uses it")
        return self

    def _check_text(self) -> None:
        if not is_open_clip(self.name):
            raise KeyedError(
                "classifier", f"text with {self.name}", "linear (text needs an open_clip: model)"
            )
        if self.train == "head" and not self.train_logit_scale:
            raise KeyedError(
                "train",
                "head with classifier: text",
                "lora, all, or classifier: linear (nothing would train)",
            )


class FractionsConfig(Words):
    """Shares of the images set aside, used where a data set has no split of its own."""

    val: Share = Field(0.15, description="Share of the images (whole groups) for validation.")
    test: Share = Field(0.2, description="Share of the images (whole groups) for the test.")

    @model_validator(mode="after")
    def _leaves_training_images(self) -> Self:
        if self.val + self.test >= 1:
            raise KeyedError("val", f"val + test = {self.val + self.test:g}", "a sum below 1")
        return self


class DataConfig(Words):
    """The images and how they are split and prepared."""

    name: Text = Field(description="One of: " + ", ".join(DATA_NAMES) + ".")
    root: Text | None = Field(None, description="Folder that holds the data set, where it is not packaged.")
    image_size: Annotated[int, Field(ge=8, le=1024)] = Field(
        28, description="Side of the square images, in pixels."
    )
    augment: Annotated[tuple[Literal["flip", "rotate90", "crop", "color"], ...], Field(strict=False)] = Field(
        (), description="Augmentations of training images, in this order."
    )
    fractions: FractionsConfig = Field(
        FractionsConfig(), description="Shares set aside where the data set has no split of its own."
    )
    split_seed: Seed = Field(
        0, description="Seed of the split and of max_train; independent of the run's seed."
    )
    max_train: Count | None = Field(
        None, description="At most this many training images (whole groups); null: all."
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in DATA_NAMES:
            raise KeyedError("name", repr(self.name), nearest(self.name, DATA_NAMES))
        if self.name == "image_folder" and self.root is None:
            raise KeyedError("root", "null with name: image_folder", "the folder of the images")
        if len(set(self.augment)) < len(self.augment):
            raise KeyedError("augment", f"{list(self.augment)}", "each augmentation once")
        return self


class IidPartition(Words):
    """Training images dealt out at random, in equal numbers."""

    name: Literal["iid"] = Field(description="Images dealt out at random.")


class DirichletPartition(Words):
    """Each class divided by a Dirichlet draw: the smaller alpha, the more the clients differ."""

    name: Literal["dirichlet"] = Field(description="Each class divided by a Dirichlet draw.")
    alpha: Positive = Field(description="Concentration; 0.1 is strongly uneven, 100 nearly iid.")
    min_size: Whole = Field(0, description="Fewest images a client may have; drawn again until it holds.")


class ShardsPartition(Words):
    """Images sorted by label, cut into shards; each client gets some."""

    name: Literal["shards"] = Field(description="Label-sorted shards.")
    per_client: Count = Field(description="Shards of each client.")


class SitesPartition(Words):
    """The data set's natural sites are the clients."""

    name: Literal["sites"] = Field(description="Natural sites of the data set.")


class FilePartition(Words):
    """A JSON file says which images each client has."""

    name: Literal["file"] = Field(description="Read from a JSON file.")
    path: Text = Field(description="JSON file of image indices per client.")


PartitionConfig = Annotated[
    IidPartition | DirichletPartition | ShardsPartition | SitesPartition | FilePartition,
    Field(discriminator="name"),
]


class ClientsConfig(Words):
    """How many clients there are, who takes part in a round, and what each of them holds."""

    count: Annotated[int, Field(ge=1, le=1_000_000)] = Field(description="Number of clients.")
    per_round: Literal["all"] | Count | Share = Field(
        "all", description="Clients per round: all, a number, or a fraction below 1."
    )
    sampling: Literal["uniform", "volume"] = Field(
        "uniform", description="Who takes part: all alike, or in proportion to the number of images."
    )
    weighting: Literal["samples", "uniform"] = Field(
        "samples", description="Weight of a client's update: its number of images, or all alike."
    )
    per_block: Literal["auto"] | Count = Field("auto", description="Clients trained together as one batch.")
    partition: PartitionConfig = Field(description="How the training images are divided among the clients.")

    @model_validator(mode="after")
    def _enough_clients(self) -> Self:
        if isinstance(self.per_round, int) and self.per_round > self.count:
            raise KeyedError("per_round", str(self.per_round), f"at most clients.count = {self.count}")
        return self


class ConstantSchedule(Words):
    """The same learning rate in every round."""

    name: Literal["constant"] = Field("constant", description="The same learning rate in every round.")


class CosineSchedule(Words):
    """Half a cosine from lr in the first round to final * lr in the last."""

    name: Literal["cosine"] = Field(description="Half a cosine over the rounds.")
    final: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="Last round's learning rate / lr.")


class LinearSchedule(Words):
    """A straight line from lr in the first round to final * lr in the last."""

    name: Literal["linear"] = Field(description="A straight line over the rounds.")
    final: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="Last round's learning rate / lr.")


class StepSchedule(Words):
    """Multiplied by factor after every so many rounds."""

    name: Literal["step"] = Field(description="Multiplied by factor after every so many rounds.")
    every: Count = Field(description="Rounds between two steps.")
    factor: Annotated[float, Field(gt=0, le=1)] = Field(description="Multiplier of each step.")


ScheduleConfig = Annotated[
    ConstantSchedule | CosineSchedule | LinearSchedule | StepSchedule, Field(discriminator="name")
]
Beta = Annotated[float, Field(ge=0, lt=1)]
ADAM_BETAS = (0.9, 0.999)


class TrainConfig(Words):
    """Local training of one client in one phase of a round."""

    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="Local optimiser.")
    lr: Annotated[float, Field(gt=0, le=1000)] = Field(description="Learning rate.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Momentum of sgd.")
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = Field(
        ADAM_BETAS, description="Moments of adamw."
    )
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = Field(0.0, description="Weight decay.")
    batch_size: Count = Field(32, description="Images per step and client.")
    steps: Count | None = Field(None, description="Local steps per round; null: epochs counts instead.")
    epochs: Count | None = Field(
        default_factory=lambda seen: 1 if seen.get("steps") is None else None,
        description="Passes over the client's images per round. Default: 1 if steps is not given, else null.",
    )
    schedule: ScheduleConfig = Field(ConstantSchedule(), description="Learning rate over the rounds.")
    clip_norm: Positive | None = Field(
        None, description="Largest norm of a client's gradient; null: no limit."
    )
    keep_optimizer: bool = Field(False, description="Whether a client's optimiser state outlives the round.")

    @model_validator(mode="after")
    def _one_length_and_no_idle_keys(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise KeyedError(
                "steps", f"epochs: {self.epochs} and steps: {self.steps}", "one of them; the other null"
            )
        if self.epochs is None and self.steps is None:
            raise KeyedError("epochs", "epochs: null and steps: null", "one of them")
        if self.optimizer == "adamw" and self.momentum != 0:
            raise KeyedError(
                "momentum", f"{self.momentum:g} with optimizer: adamw", "0: adamw uses betas instead"
            )
        if self.optimizer == "sgd" and self.betas != ADAM_BETAS:
            raise KeyedError(
                "betas", f"{list(self.betas)} with optimizer: sgd", "no betas: sgd uses momentum"
            )
        return self


class EvaluateConfig(Words):
    """When the global model is measured, and which round counts as the best."""

    every: Count = Field(1, description="Rounds between two evaluations; the last round is always evaluated.")
    batch_size: Count = Field(64, description="Images per forward pass.")
    best_by: Literal["balanced_accuracy", "accuracy", "auroc", "f1", "loss"] = Field(
        "accuracy", description="Validation metric that decides on the best round."
    )
    patience: Count | None = Field(
        None, description="Stop after this many evaluations without a better one; null: never."
    )


class CheckpointConfig(Words):
    """How often the state is saved, and how many saved states are kept."""

    every: Count = Field(1, description="Rounds between two checkpoints; the last round is always saved.")
    keep: Count = Field(2, description="Latest checkpoints kept, beside the best.")


class Config(Words):
    """A whole experiment."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=200)] = Field(
        description="Name of the run and of its folder: letters, digits, dot, underscore, hyphen."
    )
    seed: Seed = Field(0, description="Every random draw of the run follows from it.")
    rounds: Count = Field(description="Communication rounds.")
    algorithm: AlgorithmConfig = Field(AlgorithmConfig(), description="The method and its own keys.")
    model: ModelConfig = Field(description="Encoder, LoRA, classifier.")
    data: DataConfig = Field(description="Images, split, augmentation.")
    clients: ClientsConfig = Field(description="Number, sampling and partition of the clients.")
    train: TrainConfig = Field(description="Local training.")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="Evaluation and early stop.")
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), description="Saving the state.")

    @model_validator(mode="after")
    def _name_is_a_folder(self) -> Self:
        if set(self.name) == {"."}:
            raise KeyedError("name", repr(self.name), "a name that is not only dots")
        return self
