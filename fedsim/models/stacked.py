"""The model that a block of K clients trains at once: a frozen part they share and parameters of their own.

Every parameter tensor is either plain (all clients share it) or has a leading client axis. The model is cut in
two: the frozen prefix, which never sees a trained parameter and so may be computed once per image, and the rest.
With ``amplitude_norm`` the rest is all but the images, since a client's target moves with what it sees.

Shapes: K clients in a block, B images per client, N images in all, W feature width, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from fedsim.config.words import ModelConfig
from fedsim.kernels.frozen import cast_products, freeze_linears, transpose_linears
from fedsim.models.amplitude import AmplitudeNorm
from fedsim.models.encoders import Encoder
from fedsim.models.lora import LoraLayer, add_lora, initial_factor
from fedsim.models.specs import AMPLITUDE, AMPLITUDE_IS_FIXED, Kind, ParamSpec
from fedsim.seeding import torch_stream


@dataclass(frozen=True)
class Counting:
    """Whose tokens are counted in a forward pass: those of the inputs at ``places``, bool (K, B).

    ``padding``: also the tokens after a text's end, up to the longest text that goes through the model with it.
    """

    places: Tensor
    padding: bool


class StackedModel:
    """Images or texts to class scores for one client or a block of clients; see the module's text for the shapes."""

    def __init__(self, config: ModelConfig, encoder: Encoder, num_classes: int, device: torch.device) -> None:
        self.config = config
        self.encoder = encoder
        self.device = device
        self.width = encoder.width
        self.num_classes = num_classes
        self.net: nn.Module = encoder.net.requires_grad_(False).eval().to(device)
        self._mean = torch.tensor(encoder.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(encoder.std, device=device).view(1, 3, 1, 1)
        self._amplitude_norm: AmplitudeNorm | None = None
        if config.amplitude_norm is not None:
            size = encoder.image_size
            self._amplitude_norm = AmplitudeNorm(config.amplitude_norm, len(encoder.mean), size, size).to(device)
        self._text = None if encoder.text_features is None else encoder.text_features.to(device)
        self._logit_scale = encoder.logit_scale
        self.lora_layers: list[LoraLayer] = []
        if config.lora is not None:
            assert encoder.tower is not None, "load_encoder refuses LoRA without blocks"
            self._tower = encoder.tower
            if config.precision == "bf16":
                cast_products(self.blocks)
            self.lora_layers = add_lora(self.blocks, "blocks", config.lora, config.adapted_layers)
            freeze_linears(self.blocks)
            lowest = min(int(layer.path.split(".")[1]) for layer in self.lora_layers)
            for block in self.blocks[lowest:]:
                transpose_linears(block)
            self._tower.compile_rows()
        self.specs = self._make_specs()

    @property
    def has_frozen_prefix(self) -> bool:
        """Whether ``prefix`` does work that is worth keeping: what precedes all that trains or follows the images."""
        return self.config.train != "all" and self._amplitude_norm is None

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks of a model with LoRA."""
        return self._tower.blocks

    @property
    def num_layers(self) -> int:
        """Transformer blocks, or the parts of a network that has none."""
        return len(self.blocks) if self.lora_layers else len(list(self.net.children()))

    def mixes_images(self, *, training: bool) -> bool:
        """Whether what the network makes of an image depends on the others of its batch.

        BatchNorm and amplitude normalisation do so in training; in evaluation only the BatchNorm of HarmoFL's
        networks as released does, for want of running statistics.
        """
        amplitudes = training and self._amplitude_norm is not None
        if amplitudes or self.config.train != "all":
            return amplitudes
        norms = [part for part in self.net.modules() if isinstance(part, _BatchNorm)]
        return any(training or (type(part) is nn.BatchNorm2d and not part.track_running_stats) for part in norms)

    def normalises_over_batch(self, image_size: int) -> bool:
        """Whether some BatchNorm layer meets one value per channel and image, so that it cannot train on one image."""
        if self.encoder.tokenizer is not None:
            return False
        state = {name: value.clone() for name, value in self.net.state_dict().items()}
        image = torch.zeros(1, 3, image_size, image_size, device=self.device)
        self.net.train()
        try:
            with torch.no_grad():
                functional_call(self.net, state, (image,))
        except ValueError:
            return True
        finally:
            self.net.eval()
        return False

    def _make_specs(self) -> dict[str, ParamSpec]:
        specs: dict[str, ParamSpec] = {}
        if self._amplitude_norm is not None:
            for name, buffer in self._amplitude_norm.state_dict().items():
                specs[f"amplitude_norm.{name}"] = ParamSpec(tuple(buffer.shape), "buffer")
        if self.config.train == "all":
            norms = {name for name, module in self.net.named_modules() if isinstance(module, _BatchNorm)}
            for name, parameter in self.net.named_parameters():
                kind: Kind = "norm" if name.rpartition(".")[0] in norms else "body"
                specs[f"net.{name}"] = ParamSpec(tuple(parameter.shape), kind)
            # Buffers that a checkpoint of the net would not hold are constants.
            for name, buffer in self.net.named_buffers():
                if name not in self.net.state_dict():
                    continue
                specs[f"net.{name}"] = ParamSpec(tuple(buffer.shape), "buffer")
        for layer in self.lora_layers:
            for name, shape in layer.shapes.items():
                specs[name] = ParamSpec(shape, "lora_a" if name.endswith("a") else "lora_b")
        if self.encoder.per_pixel:
            return specs
        if self._text is None:
            specs["head.weight"] = ParamSpec((self.num_classes, self.width), "head")
            if self.encoder.head_bias:
                specs["head.bias"] = ParamSpec((self.num_classes,), "head")
        elif self.config.train_logit_scale:
            specs["logit_scale"] = ParamSpec((), "local")
        return specs

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Return the first server parameters: pretrained or drawn from ``seed``, the same on every rank."""
        own = dict(self.net.named_parameters("net")) | dict(self.net.named_buffers("net"))
        if self._amplitude_norm is not None:
            own |= self._amplitude_norm.named_buffers("amplitude_norm")
        params = {}
        for name, spec in self.specs.items():
            if spec.kind in ("body", "norm", "buffer"):
                params[name] = own[name].detach().clone()
            elif spec.kind in ("lora_a", "lora_b"):
                params[name] = initial_factor(name, spec.shape, seed)
            elif name == "logit_scale":
                params[name] = torch.tensor(self._logit_scale)
            else:
                params[name] = self._initial_head(name, spec.shape, seed)
        return {name: value.to(self.device) for name, value in params.items()}

    def _initial_head(self, name: str, shape: Sequence[int], seed: int) -> Tensor:
        if name == "head.bias":
            return torch.zeros(*shape)
        return 0.02 * torch.randn(*shape, generator=torch_stream(seed, f"init/{name}"))

    def prefix(self, inputs: Tensor) -> Tensor:
        """Apply what comes before all that trains to the inputs.

        Images (N, 3, H, W), floats in 0..1, become tokens, features or normalised pixels; they stay as they are where
        their amplitudes are normalised first, since that follows the images that a client sees. Texts (N, 2, T) become
        features or stay.
        """
        return inputs if self._amplitude_norm is not None else self._frozen(inputs)

    def _frozen(self, inputs: Tensor) -> Tensor:
        fixed = inputs if self.encoder.tokenizer is not None else (inputs - self._mean) / self._std
        with torch.no_grad():
            if self.config.train == "lora":
                fixed = self._tower.stem(fixed)
            elif self.config.train == "head":
                with self._precision():
                    fixed = self.net(fixed).to(float_type(fixed))
        return fixed

    def forward(self, params: Mapping[str, Tensor], fixed: Tensor, *, training: bool) -> Tensor:
        """Return class scores (K, B, C) for prefixes (K, B, ...); see ``features``."""
        return self.classify(params, self.features(params, fixed, training=training))

    def features(
        self, params: Mapping[str, Tensor], fixed: Tensor, *, training: bool, counting: Counting | None = None
    ) -> Tensor:
        """Return what the classifier sees, (K, B, W), for prefixes (K, B, ...).

        A network that scores pixels has no classifier: (K, B, C, H, W) are then its scores.

        ``training`` lets running statistics follow the batch (they are updated in place in ``params``), ``counting``
        what a sub-model counts.
        """
        num_clients, batch = fixed.shape[:2]
        fixed = self._harmonised(params, fixed, training)
        if self.config.train == "head":
            return fixed
        if self.config.train == "lora":
            tokens = fixed.flatten(0, 1)
            self._bind(params, tokens, counting)
            with self._precision():
                features = self._tower.encode(tokens, every_token=counting is not None)
                features = features.reshape(num_clients, batch, -1)
        else:
            with self._precision():
                features = self._whole_net(params, fixed, training)
        return features.to(float_type(fixed))

    def states(self, params: Mapping[str, Tensor], fixed: Tensor) -> list[Tensor]:
        """Return every block's output (N, T, D), of padding too, for prefixes (N, ...) of inputs; with LoRA only.

        ``params`` have no client axis; whatever of them requires a gradient gets one.
        """
        tokens = self._harmonised(params, fixed[None], training=False)[0]
        self._bind(params, tokens, None)
        with self._precision():
            found: list[Tensor] = self._tower.states(tokens)
        return found

    def own_tokens(self, fixed: Tensor) -> Tensor | None:
        """Return which of ``states``'s tokens are an input's own, bool (N, T), for prefixes (N, ...); None: all."""
        own: Tensor | None = None if self.encoder.tokenizer is None else self._tower.own_tokens(fixed)
        return own

    def _bind(self, params: Mapping[str, Tensor], tokens: Tensor, counting: Counting | None) -> None:
        """Let the next forward pass, over ``tokens`` (N, T, ...), use these parameters."""
        del tokens, counting
        for layer in self.lora_layers:
            layer.bind(params)

    def _harmonised(self, params: Mapping[str, Tensor], fixed: Tensor, training: bool) -> Tensor:
        """Return prefixes (K, B, ...) as they are, or those of images (K, B, 3, H, W) with the clients' amplitudes."""
        norm = self._amplitude_norm
        if norm is None:
            return fixed
        own = {name.rpartition(".")[2]: params[name] for name in params if name.startswith("amplitude_norm.")}
        norm.train(training)
        images: Tensor = functional_call(norm, own, (fixed,))
        inside = self._frozen(images.flatten(0, 1))
        return inside.reshape(*images.shape[:2], *inside.shape[1:])

    def with_fixed_amplitude(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Let the targets of the amplitudes stay in the next forward pass, so that it sees the last one's images."""
        if self._amplitude_norm is None:
            return params
        has_target = params[AMPLITUDE].flatten(-3).any(-1) | params[AMPLITUDE_IS_FIXED]
        return {**params, AMPLITUDE_IS_FIXED: has_target}

    def _precision(self) -> torch.autocast:
        """bf16 products inside the encoder if so configured; residuals, norms, factors and classifier stay fp32."""
        is_bf16 = self.config.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_bf16)

    def _whole_net(self, params: Mapping[str, Tensor], pixels: Tensor, training: bool) -> Tensor:
        own = {name.removeprefix("net."): params[name] for name in params if name.startswith("net.")}
        stacked = {name: own[name].dim() > len(self.specs[f"net.{name}"].shape) for name in own}
        self.net.train(training)
        if len(pixels) == 1:
            # The readable reference: one client, the plain network.
            single = {name: value[0] if stacked[name] else value for name, value in own.items()}
            # With channels last convolutions are faster (slim VGG16, one CPU thread: 20 %, without gradients 40 %).
            images = pixels[0].contiguous(memory_format=torch.channels_last) if pixels.dim() == 5 else pixels[0]
            alone: Tensor = functional_call(self.net, single, (images,))
            return alone[None]

        def one_client(own_params: dict[str, Tensor], own_pixels: Tensor) -> Any:
            return functional_call(self.net, own_params, (own_pixels,))

        axes = {name: 0 if stacked[name] else None for name in own}
        features: Tensor = vmap(one_client, in_dims=(axes, 0))(own, pixels)
        return features

    def classify(self, params: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return class scores (K, B, C) of features (K, B, W)."""
        if self.encoder.per_pixel:
            return features
        if self._text is None:
            scores = torch.matmul(features, params["head.weight"].transpose(-1, -2))
            if not self.encoder.head_bias:
                return scores
            bias = params["head.bias"]
            return scores + (bias[:, None] if bias.dim() == 2 else bias)
        scale = params["logit_scale"] if self.config.train_logit_scale else torch.tensor(self._logit_scale)
        scale = scale.to(features.device).exp().reshape(-1, 1, 1)
        return scale * F.normalize(features, dim=-1) @ self._text.T


def float_type(inputs: Tensor) -> torch.dtype:
    """Return the type of features: that of the inputs, float32 for token ids."""
    return inputs.dtype if inputs.is_floating_point() else torch.float32
