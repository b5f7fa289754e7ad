"""The sections of a config that choose the method and the model."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from fedsim.catalogue.models import MODELS, OWN_MODEL, WEIGHT_FILES, ModelRow, model_row
from fedsim.config.amplitude import AmplitudeNormConfig
from fedsim.config.base import Count, Layers, Positive, Ranks, Scalar, Text, Words
from fedsim.config.decoder import DecoderConfig
from fedsim.config.mistakes import KeyedError, nearest

# Words of model.lora.target that mean all layers of a kind.
ALL_LINEAR, ALL_CONV = "all-linear", "all-conv"


def has_text_tower(name: object) -> bool:
    """Whether a model of that name brings a tower for texts, and with it a classifier."""
    row = model_row(name) if isinstance(name, str) else None
    return row is not None and row.text_tower


def check_rising(key: str, layers: Sequence[int] | None) -> None:
    """Refuse numbers of layers that do not rise."""
    if layers is not None and any(after <= before for before, after in pairwise(layers)):
        raise KeyedError(key, f"{list(layers)}", "layers in rising order, each once")


class AlgorithmConfig(Words):
    """The method's name and, beside it, its own keys, which its own ``Config`` checks."""

    model_config = ConfigDict(extra="allow")

    name: Text = Field(default="fedavg", description="Method: a known name, or package.module.Class of your own.")

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own keys, without ``name``."""
        return dict(self.model_extra or {})


class RanksConfig(Words):
    """Ranks of which every client has one."""

    values: Ranks = Field(description="The ranks that clients may have.")
    weights: Annotated[tuple[Positive, ...], Field(strict=False)] | None = Field(
        default=None, description="The ranks' shares, in proportion; null: all alike."
    )
    by: Literal["seed", "images"] = Field(
        default="seed",
        description="seed: drawn with these shares; images: the clients with the fewest images, so many as its share "
        "says, have the first rank, and so on.",
    )

    @model_validator(mode="after")
    def _a_share_for_each(self) -> Self:
        if self.weights is not None and len(self.weights) != len(self.values):
            raise KeyedError("weights", f"{len(self.weights)} for {len(self.values)} values", "one for each value")
        return self

    @property
    def shares(self) -> list[float]:
        """The values' shares, which sum to one."""
        weights = self.weights or (1.0,) * len(self.values)
        return [weight / sum(weights) for weight in weights]


def largest_rank(ranks: Any) -> int | None:
    """The largest of ``model.lora.ranks``; None where all clients have the same."""
    values = ranks.values if isinstance(ranks, RanksConfig) else ranks
    return max(values) if values else None


class LoraConfig(Words):
    """LoRA in the words of peft; ``ranks`` and ``layers`` are ours."""

    ranks: Ranks | RanksConfig | None = Field(
        default=None,
        description="Ranks by client: a list, client k has its entry k modulo its length; or values with their shares. "
        "A client has the first rows of A and columns of B, at the scale of its own rank. null: r for all.",
    )
    r: Count = Field(
        default_factory=lambda seen: largest_rank(seen.get("ranks")) or 8,
        description="Rank of the factors. Default: 8; the largest of ranks.",
    )
    lora_alpha: Positive = Field(default=8.0, description="Scale; the update is (lora_alpha / r) * B A.")
    use_rslora: bool = Field(default=False, description="Whether the scale is lora_alpha / sqrt(r) instead.")
    init_lora_weights: Literal[True, "gaussian", "orthogonal", "pissa", "olora"] = Field(
        default=True,
        description="How the factors begin. true: A uniform, B zero; gaussian: A normal, B zero; orthogonal: both at "
        "random with B A = 0, r even; pissa, olora: the weight's first singular vectors, or the first of its QR "
        "decomposition, which the frozen weight then lacks.",
    )
    use_dora: bool = Field(
        default=False, description="Whether every output has a trained magnitude (DoRA) in place of its weight's norm."
    )
    target: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)] = Field(
        default=("q", "k", "v"),
        description="q, k, v: the attention's projections, fused or not; proj: its output; all-linear, all-conv: all "
        "linear layers, all convolutions; other words: such layers by suffix (fc1, intermediate.dense, "
        "patch_embed.proj). Plain transformers get LoRA on named linear layers of their blocks alone.",
    )
    layers: Layers | None = Field(
        default=None, description="Layers, from 0, that get LoRA; null: all that the clients hold."
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.target)) < len(self.target):
            raise KeyedError("target", f"{list(self.target)}", "each target once")
        check_rising("layers", self.layers)
        return self

    @model_validator(mode="after")
    def _ranks_fit(self) -> Self:
        largest, init = largest_rank(self.ranks), self.init_lora_weights
        if largest is not None and self.r != largest:
            raise KeyedError("r", f"{self.r} with ranks", f"{largest}, the largest of them, or no r")
        if init == "orthogonal" and self.r % 2:
            raise KeyedError("init_lora_weights", f"orthogonal with r: {self.r}", "an even r")
        if largest is not None and init in ("orthogonal", "pissa", "olora"):
            found = f"{init} with ranks: a part of the factors is not what they begin as"
            raise KeyedError("init_lora_weights", found, "true or gaussian")
        return self

    def scaling(self, rank: Any) -> Any:
        """The factor of B A where it has this rank, a number or a tensor of them."""
        return self.lora_alpha / (rank**0.5 if self.use_rslora else rank)


class SubmodelConfig(Words):
    """What clients hold in place of the model: all its layers, compressed, or some of them. One of the two keys."""

    folder: Text | None = Field(
        default=None, description="Folder that launch.py distill made of this model: feed-forwards with fewer neurons."
    )
    layers: Layers | None = Field(
        default=None, description="Layers, from 0, that clients hold; the others are dropped, as in offsite tuning."
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.folder is None) == (self.layers is None):
            found = "neither folder nor layers" if self.folder is None else "folder and layers"
            raise KeyedError("folder", found, "one of them; the other null")
        check_rising("layers", self.layers)
        return self


class ModelConfig(Words):
    """The encoder, what of it is trained, and the classifier on top."""

    name: Text = Field(description="One of: " + ", ".join(MODELS) + ", or package.module.function of your own.")
    weights: Text | None = Field(
        default=None,
        description="null: the name's own; random: from seed; an open_clip tag; or a file (.safetensors, .pth, .pt, "
        ".bin).",
    )
    options: dict[str, Scalar | list[Scalar]] = Field(
        default={},
        description="What the library's network takes: timm's patch_size, embed_dim, depth; monai:unet's channels, "
        "strides, num_res_units, norm; monai:densenet121's init_features, growth_rate. fedsim:harmofl_unet has "
        "num_features, and both fedsim:harmofl_ networks form: paper, or released: evaluation normalises over a batch. "
        "A function of your own is given them as they are.",
    )
    start_from: Text | None = Field(default=None, description="Folder of a run, or PEFT adapter, to go on from.")
    lora: LoraConfig | None = Field(default=None, description="LoRA factors on the encoder; null for none.")
    submodel: SubmodelConfig | None = Field(
        default=None, description="What clients hold and train in place of the model; null: the model itself."
    )
    train: Literal["lora", "head", "all"] = Field(
        default_factory=lambda seen: "lora" if seen.get("lora") else "all",
        description="What the clients train beside the head. Default: lora if lora is given, else all.",
    )
    amplitude_norm: AmplitudeNormConfig | None = Field(
        default=None, description="Normalisation of the images' amplitudes, {} for its defaults; null for none."
    )
    decoder: DecoderConfig | None = Field(
        default=None,
        description="What scores every pixel from the tokens of a ViT's patches, in the classifier's place; clients "
        "train all of it. null: none.",
    )
    classifier: Literal["linear", "text"] = Field(
        default_factory=lambda seen: (
            "text" if has_text_tower(seen.get("name")) and not seen.get("decoder") else "linear"
        ),
        description="linear: a trained layer; text: frozen text features of the class prompts. "
        "Default: text for open_clip without a decoder, else linear.",
    )
    prompt: Text = Field(
        default="a photo of a {}.", description="Class prompt of the text classifier; {} is the class name."
    )
    train_logit_scale: bool = Field(default=False, description="Whether the text classifier's scale is trained.")
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        default="fp32", description="Arithmetic of the encoder's products; tf32 on GPUs only."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        row = model_row(self.name)
        if row is None:
            raise KeyedError("name", repr(self.name), nearest(self.name, MODELS))
        if self.options and not row.options:
            names = ", ".join(other.name for other in MODELS.values() if other.options)
            raise KeyedError("options", f"options for {self.name}", f"none: only {names} take options")
        self._check_weights(row)
        if row.per_pixel and self.train == "head":
            raise KeyedError("train", f"head with {self.name}, which scores pixels without a head", "all or lora")
        if self.train == "lora" and self.lora is None:
            raise KeyedError("lora", "null with train: lora", "a lora section, or train: head or all")
        if self.train != "lora" and self.lora is not None:
            raise KeyedError("lora", f"a lora section with train: {self.train}", "lora: null, or train: lora")
        if row.volumes and self.lora is not None:
            raise KeyedError("lora", f"LoRA on {self.name}, whose layers are in three dimensions", "train: all or head")
        if row.volumes and self.amplitude_norm is not None:
            raise KeyedError("amplitude_norm", f"given with {self.name}", "null: only images have amplitudes")
        self._check_submodel()
        self._check_decoder(row)
        if self.prompt.count("{}") != 1:
            raise KeyedError("prompt", repr(self.prompt), "a text with {} once, for the class name")
        if self.classifier == "text":
            self._check_text()
        elif self.train_logit_scale or self.prompt != type(self).model_fields["prompt"].default:
            key = "train_logit_scale" if self.train_logit_scale else "prompt"
            raise KeyedError(key, f"{key} with classifier: linear", "classifier: text, which alone uses it")
        return self

    @property
    def adapted_layers(self) -> tuple[int, ...] | None:
        """The layers that get LoRA; None for all."""
        held = None if self.submodel is None else self.submodel.layers
        return held if self.lora is None else self.lora.layers or held

    def _check_weights(self, row: ModelRow) -> None:
        is_file = str(self.weights).endswith(WEIGHT_FILES)
        is_tag = "tag" in row.weights and "." not in str(self.weights)
        kind = {None: "own", "random": "random"}.get(self.weights, "file" if is_file else "tag" if is_tag else "")
        if kind in row.weights:
            return
        if row is OWN_MODEL:
            raise KeyedError("weights", f"{self.weights} with {self.name}", "null: the function decides")
        if row.weights == ("random",):
            raise KeyedError("weights", f"{self.weights or 'null'} with {self.name}", "random: it has no others")
        if "file" not in row.weights:
            raise KeyedError("weights", f"{self.weights} with {self.name}", "null: the folder's own, or random")
        own = "null, " if "own" in row.weights else ""
        raise KeyedError("weights", repr(self.weights), f"{own}random, or a file ({', '.join(WEIGHT_FILES)})")

    def _check_submodel(self) -> None:
        if self.submodel is None:
            return
        if self.lora is None:
            raise KeyedError("submodel", f"a sub-model with train: {self.train}", "null, or train: lora")
        held, adapted = self.submodel.layers, self.lora.layers or ()
        if held is not None and (absent := set(adapted) - set(held)):
            raise KeyedError("lora.layers", f"{min(absent)}, which clients do not hold", f"some of {list(held)}")

    def _check_decoder(self, row: ModelRow) -> None:
        if self.decoder is None:
            return
        if row.per_pixel:
            raise KeyedError("decoder", f"{self.decoder.name} with {self.name}, which scores pixels itself", "null")
        if self.submodel is not None:
            raise KeyedError(
                "submodel", "a sub-model with a decoder", "null: a decoder reads layers of the whole model"
            )
        if self.classifier == "text":
            raise KeyedError("classifier", "text with a decoder, which takes its place", "linear, or no such key")

    def _check_text(self) -> None:
        if not has_text_tower(self.name):
            raise KeyedError("classifier", f"text with {self.name}", "linear (text needs an open_clip: model)")
        if self.train == "head" and not self.train_logit_scale:
            raise KeyedError(
                "train",
                "head with classifier: text",
                "lora, all, or classifier: linear (nothing would train)",
            )
