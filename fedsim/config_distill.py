"""Typed configuration of a distillation: a whole model, public data, and the sub-model that is made of the two."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedsim.config_data import DataConfig
from fedsim.config_errors import KeyedError, refuse_idle
from fedsim.config_train import ADAM_BETAS, Beta
from fedsim.config_words import Count, ModelConfig, Name, Positive, Seed, Whole, Words


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
        if self.data.augment:
            raise KeyedError("data.augment", f"{list(self.data.augment)}", "none: inputs are distilled as they are")
        if self.distill.form == "released":
            refuse_idle(self.distill, ["alpha"], "form: released, where that error has no gradient", "distill.")
        return self
