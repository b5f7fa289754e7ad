"""Typed configuration of a distillation: a whole model, public data, and the sub-model that is made of the two."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from fedsim.config.base import Count, Name, Positive, Seed, Whole, Words
from fedsim.config.data import DataConfig
from fedsim.config.mistakes import KeyedError, mistakes, refuse_idle
from fedsim.config.plain_yaml import SCHEMA_VERSION, apply_overrides, read_mapping
from fedsim.config.source import Source
from fedsim.config.train import ADAM_BETAS, Beta
from fedsim.config.words import ModelConfig
from fedsim.errors import UserError


class CutConfig(Words):
    """What of the whole model the sub-model keeps."""

    layers_retained: Annotated[tuple[Whole, ...], Field(strict=False)] = Field(
        default=(), description="Numbers of the blocks, from 0, that stay whole."
    )
    intermediate_rank: Count = Field(description="Neurons that every other block's feed-forward keeps.")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.layers_retained)) < len(self.layers_retained):
            raise KeyedError("layers_retained", f"{list(self.layers_retained)}", "each block once")
        return self


class DistillSteps(Words):
    """The steps of a distillation, before the rounds or between them."""

    epochs: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=5.0, description="Passes over the inputs; 0.02 is one step out of fifty, 0 trains nothing."
    )
    batch_size: Count = Field(default=256, description="Inputs per step.")
    micro_batch: Count = Field(
        default_factory=lambda seen: min(32, seen.get("batch_size", 32)),
        description="Inputs per forward pass, over which errors are relative; ranks share them out. Default: 32, or "
        "batch_size where that is less.",
    )
    optimizer: Literal["sgd", "adamw"] = Field(default="adamw", description="Optimiser.")
    lr: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=6e-4, description="Largest learning rate; it falls to zero in a straight line."
    )
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.048, description="Share of the steps in which the learning rate rises from zero."
    )
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = Field(
        default=ADAM_BETAS, description="Moments of adamw."
    )
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = Field(default=0.0, description="Weight decay.")
    clip_norm: Positive | None = Field(default=1.0, description="Largest norm of the gradient; null: no limit.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.micro_batch > self.batch_size:
            raise KeyedError("micro_batch", f"{self.micro_batch} with batch_size: {self.batch_size}", "at most that")
        if self.optimizer == "sgd" and self.betas != ADAM_BETAS:
            raise KeyedError("betas", f"{list(self.betas)} with optimizer: sgd", "no betas: sgd has none")
        return self


class DistillSettings(DistillSteps):
    """Distillation of a sub-model."""

    alpha: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.01, description="Weight of the error of the feed-forward's product of matrices."
    )
    form: Literal["paper", "released"] = Field(
        default="paper",
        description="released: as the published code, the product's error has no gradient, and padding counts.",
    )


class DistillConfig(Words):
    """Everything that ``launch.py distill`` does."""

    name: Name = Field(description="Name of the sub-model and of its folder: letters, digits, dot, underscore, hyphen.")
    seed: Seed = Field(default=0, description="Every random draw of the distillation follows from it.")
    deterministic: bool = Field(
        default=True, description="Whether a GPU uses only kernels that give the same bits every time."
    )
    model: ModelConfig = Field(description="The whole model, as in the run; its LoRA is untrained and changes nothing.")
    data: DataConfig = Field(description="Public images or texts; their labels are not used.")
    submodel: CutConfig = Field(description="What is kept of the whole model.")
    distill: DistillSettings = Field(default=DistillSettings(), description="Its distillation.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.model.lora is None:
            raise KeyedError("model.lora", "null", "a lora section, {} for its defaults: blocks that LoRA can adapt")
        if self.model.submodel is not None:
            raise KeyedError("model.submodel", "a sub-model", "null: this is what makes one")
        if self.model.decoder is not None:
            raise KeyedError("model.decoder", self.model.decoder.name, "null: a sub-model has none")
        if self.model.start_from is not None:
            raise KeyedError("model.start_from", "a run", "null: LoRA is untrained here")
        if self.data.augment:
            raise KeyedError("data.augment", f"{list(self.data.augment)}", "none: inputs are distilled as they are")
        if self.distill.form == "released":
            refuse_idle(self.distill, ["alpha"], "form: released, where that error has no gradient", "distill.")
        return self


def load_distill_config(path: Path | str, overrides: Sequence[str] = (), *, check_paths: bool = True) -> DistillConfig:
    """Read a YAML file and apply ``key=value`` overrides, as ``configure.load_config`` does.

    Without ``check_paths`` the files and folders that it names need not be there. UserError for a run's config.
    """
    data = read_mapping(Path(path))
    if "rounds" in data:
        raise UserError(str(path), "a run's config, with rounds", "a distillation's; launch.py run takes it")
    source = Source(str(path), apply_overrides(data, overrides))
    try:
        config = DistillConfig.model_validate(data)
    except ValidationError as error:
        source.refuse(mistakes(error, data, DistillConfig))
    if check_paths:
        source.check_paths(config.model, config.data)
    return config


def distill_schema() -> dict[str, Any]:
    """JSON schema of a distillation's config."""
    return {**DistillConfig.model_json_schema(), "$schema": SCHEMA_VERSION}
