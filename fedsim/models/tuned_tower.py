"""A network of which LoRA layers train, for a block of clients at once; everything else of it is frozen.

Shapes: K clients in a block, B inputs per client, N = K B, T tokens, D width of the tokens, W feature width.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from fedsim.config.words import ALL_LINEAR, LoraConfig, ModelConfig
from fedsim.errors import UserError
from fedsim.kernels.frozen import cast_products, freeze_linears, transpose_linears
from fedsim.models.lora import QKV, LoraLayer, add_lora
from fedsim.models.specs import RANK, Kind, ParamSpec
from fedsim.models.stacked import Counting, StackedModel
from fedsim.models.tower import Encoder, Tower

KINDS: dict[str, Kind] = {"lora_a": "lora_a", "lora_b": "lora_b", "lora_magnitude": "magnitude"}


class TunedModel(StackedModel):
    """A network with LoRA layers, ``lora_layers``, in it."""

    def __init__(
        self,
        config: ModelConfig,
        encoder: Encoder,
        layers: Sequence[LoraLayer],
        num_classes: int,
        device: torch.device,
    ) -> None:
        self.lora_layers = layers
        super().__init__(config, encoder, num_classes, device)

    def encoder_specs(self) -> dict[str, ParamSpec]:
        specs = {
            name: ParamSpec(shape, KINDS[name.rpartition(".")[2]])
            for layer in self.lora_layers
            for name, shape in layer.shapes.items()
        }
        return specs | ({} if self.lora.ranks is None else {RANK: ParamSpec((), "rank")})

    @property
    def lora(self) -> LoraConfig:
        """The words of ``model.lora``."""
        assert self.config.lora is not None, "LoRA layers are what trains"
        return self.config.lora

    def initial_encoder(self, seed: int) -> dict[str, Tensor]:
        init = self.lora.init_lora_weights
        factors = {name: value for layer in self.lora_layers for name, value in layer.initial(init, seed).items()}
        return factors | ({} if self.lora.ranks is None else {RANK: torch.tensor(float(self.lora.r))})

    def with_shifts(self) -> Self:
        other = copy.copy(self)
        shifts = {name: ParamSpec(shape, "shift") for layer in self.lora_layers for name, shape in layer.shift.items()}
        other.specs = self.specs | shifts
        return other

    def bind(self, params: Mapping[str, Tensor], tokens: Tensor, counting: Counting | None) -> None:
        """Let the next forward pass, over ``tokens`` (N, T, ...), use these parameters."""
        del tokens, counting
        scaling = self.lora.scaling(params[RANK]) if RANK in params else None
        for layer in self.lora_layers:
            layer.bind(params, scaling)

    def hides_examples(self) -> str | None:
        """Return the path of a layer whose gradients by single examples are not known; None where all are."""
        return None


class TunedTower(TunedModel):
    """A tower whose ``layers`` are in its blocks; see ``tune``."""

    def __init__(
        self,
        config: ModelConfig,
        encoder: Encoder,
        layers: Sequence[LoraLayer],
        num_classes: int,
        device: torch.device,
    ) -> None:
        assert encoder.tower is not None, "load_encoder refuses LoRA without blocks"
        self.tower: Tower = encoder.tower
        super().__init__(config, encoder, layers, num_classes, device)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        return self.tower.blocks

    @property
    def num_layers(self) -> int:
        """Transformer blocks."""
        return len(self.blocks)

    def freeze(self, pixels: Tensor) -> Tensor:
        return self.tower.stem(pixels)

    def encode(
        self, params: Mapping[str, Tensor], fixed: Tensor, *, training: bool, counting: Counting | None
    ) -> Tensor:
        tokens = fixed.flatten(0, 1)
        self.bind(params, tokens, counting)
        with self._precision():
            features = self.tower.encode(tokens, every_token=counting is not None)
        return features.reshape(*fixed.shape[:2], *features.shape[1:])

    def states(self, params: Mapping[str, Tensor], fixed: Tensor) -> list[Tensor]:
        """Return every block's output (N, T, D), of padding too, for prefixes (N, ...) of inputs.

        ``params`` have no client axis; whatever of them requires a gradient gets one. Slices of volumes are N inputs.
        """
        if self.encoder.slices is not None:
            fixed = fixed.flatten(0, 1)
        tokens = self._harmonised(params, fixed[None], training=False)[0]
        self.bind(params, tokens, None)
        with self._precision():
            return self.tower.states(tokens)

    def own_tokens(self, fixed: Tensor) -> Tensor | None:
        """Return which of ``states``'s tokens are an input's own, bool (N, T), for prefixes (N, ...); None: all."""
        return None if self.encoder.tokenizer is None else self.tower.own_tokens(fixed)


def spelled_out(config: ModelConfig, blocks: nn.Module) -> ModelConfig:
    """Return a config in which all-linear is the words that mean all linear layers of these blocks.

    UserError for words beside it.
    """
    assert config.lora is not None, "LoRA layers are what trains"
    target = config.lora.target
    if ALL_LINEAR not in target:
        return config
    if beside := [word for word in target if word != ALL_LINEAR]:
        raise UserError("model.lora.target", f"{beside[0]} beside {ALL_LINEAR}", f"{ALL_LINEAR} alone")
    names = {path.rpartition(".")[2] for path, part in blocks.named_modules() if isinstance(part, nn.Linear)}
    words = (*(QKV if "qkv" in names else ()), *sorted(names - {"qkv"}))
    return config.model_copy(update={"lora": config.lora.model_copy(update={"target": words})})


def tune(config: ModelConfig, encoder: Encoder, num_classes: int, device: torch.device) -> TunedTower:
    """Put LoRA layers into an encoder's blocks, and lay out for the processor what stays frozen."""
    tower = encoder.tower
    assert tower is not None, "load_encoder refuses LoRA without blocks"
    config = spelled_out(config, tower.blocks)
    assert config.lora is not None, "LoRA layers are what trains"
    tower.requires_grad_(False).to(device)
    if config.precision == "bf16":
        cast_products(tower.blocks)
    layers = add_lora(tower.blocks, "blocks", config.lora, config.adapted_layers)
    freeze_linears(tower.blocks)
    lowest = min(int(layer.path.split(".")[1]) for layer in layers)
    for block in tower.blocks[lowest:]:
        transpose_linears(block)
    tower.compile_rows()
    return TunedTower(config, encoder, layers, num_classes, device)
