"""The model that a block of K clients trains at once: what they share, and parameters of their own.

Every parameter tensor is either plain (all clients share it) or has a leading client axis. A model has up to three
parts: a frozen prefix, which never sees a trained parameter and so may be computed once per image, an encoder, and a
classifier or a decoder for pixels. Kinds of models differ in the first two: the encoder trains nothing (here), LoRA
layers (``tuned_tower.py``), or everything (``whole_net.py``). With ``amplitude_norm`` the prefix is empty, since a
client's target moves with what it sees.

Where inputs are volumes, each slice goes through the first two parts by itself, and the classifier sees the mean of a
volume's slices; a network for whole volumes sees all of them at once.

Shapes: K clients in a block, B images per client, N images in all, S slices of a volume, W feature width, C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.config.words import ModelConfig
from fedsim.models.amplitude import AmplitudeNorm
from fedsim.models.networks.each_client import each_client
from fedsim.models.specs import AMPLITUDE, AMPLITUDE_IS_FIXED, ParamSpec
from fedsim.models.tower import Encoder, one_channel
from fedsim.seeding import torch_stream


@dataclass(frozen=True)
class Counting:
    """Whose tokens are counted in a forward pass: those of the inputs at ``places``, bool (K, B).

    ``padding``: also the tokens after a text's end, up to the longest text that goes through the model with it.
    """

    places: Tensor
    padding: bool


class StackedModel(ABC):
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
        self.decoder = None if encoder.decoder is None else encoder.decoder.requires_grad_(False).to(device)
        self.specs = self._outer_specs("buffer") | self.encoder_specs() | self._outer_specs("head", "local")

    # What kinds of models differ in.

    #: Whether ``prefix`` does work that is worth keeping, unless it follows the clients' images.
    freezes = True

    @property
    def num_layers(self) -> int:
        """The parts of the network, by which its memory in training is guessed."""
        return len(list(self.net.children()))

    def encoder_specs(self) -> dict[str, ParamSpec]:
        """What of the encoder is a parameter."""
        return {}

    def initial_encoder(self, seed: int) -> dict[str, Tensor]:
        """The encoder's first parameters, by the names of ``encoder_specs``."""
        del seed
        return {}

    def with_shifts(self) -> Self:
        """Return a model of the same network with a "shift" for every adapted layer, zero at first; see ``specs``."""
        return self

    def encoder_mixes(self, *, training: bool) -> bool:
        """Whether what the encoder makes of an image depends on the others of its batch."""
        del training
        return False

    @abstractmethod
    def freeze(self, pixels: Tensor) -> Tensor:
        """The prefix of normalised images (N, 3, H, W), or of texts (N, 2, T)."""

    @abstractmethod
    def encode(
        self, params: Mapping[str, Tensor], fixed: Tensor, *, training: bool, counting: Counting | None
    ) -> Tensor:
        """What the classifier sees, (K, B, W), of prefixes (K, B, ...)."""

    # What they share.

    def _outer_specs(self, *kinds: str) -> dict[str, ParamSpec]:
        specs: dict[str, ParamSpec] = {}
        if self._amplitude_norm is not None:
            for name, buffer in self._amplitude_norm.state_dict().items():
                specs[f"amplitude_norm.{name}"] = ParamSpec(tuple(buffer.shape), "buffer")
        if self.decoder is not None:
            parameters = self.decoder.named_parameters("decoder")
            specs |= {name: ParamSpec(tuple(value.shape), "head") for name, value in parameters}
        elif not self.encoder.per_pixel and self._text is None:
            specs["head.weight"] = ParamSpec((self.num_classes, self.width), "head")
            if self.encoder.head_bias:
                specs["head.bias"] = ParamSpec((self.num_classes,), "head")
        if self._text is not None and self.config.train_logit_scale:
            specs["logit_scale"] = ParamSpec((), "local")
        return {name: spec for name, spec in specs.items() if spec.kind in kinds}

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Return the first server parameters: pretrained or drawn from ``seed``, the same on every rank."""
        found = self.initial_encoder(seed)
        if self._amplitude_norm is not None:
            found |= {name: value.clone() for name, value in self._amplitude_norm.named_buffers("amplitude_norm")}
        for name, spec in self.specs.items():
            if spec.kind == "head":
                found[name] = self._initial_head(name, spec.shape, seed)
            elif spec.kind == "shift":
                found[name] = torch.zeros(spec.shape)
        if "logit_scale" in self.specs:
            found["logit_scale"] = torch.tensor(self._logit_scale)
        return {name: found[name].to(self.device) for name in self.specs}

    def _initial_head(self, name: str, shape: Sequence[int], seed: int) -> Tensor:
        if self.decoder is not None:
            return self.decoder.get_parameter(name.removeprefix("decoder.")).detach().clone()
        if name == "head.bias":
            return torch.zeros(*shape)
        return 0.02 * torch.randn(*shape, generator=torch_stream(seed, f"init/{name}"))

    @property
    def has_frozen_prefix(self) -> bool:
        """Whether ``prefix`` does work that is worth keeping: what precedes all that trains or follows the images."""
        return self.freezes and self._amplitude_norm is None

    def mixes_images(self, *, training: bool) -> bool:
        """Whether what the network makes of an image depends on the others of its batch.

        BatchNorm and amplitude normalisation do so in training; in evaluation only the BatchNorm of HarmoFL's
        networks as released does, for want of running statistics.
        """
        return (training and self._amplitude_norm is not None) or self.encoder_mixes(training=training)

    def prefix(self, inputs: Tensor) -> Tensor:
        """Apply what comes before all that trains to the inputs.

        Images (N, 3, H, W), floats in 0..1, become tokens, features or normalised pixels; they stay as they are where
        their amplitudes are normalised first, since that follows the images that a client sees. Texts (N, 2, T) become
        features or stay. Of volumes (N, S, 3, H, W) it is the same slice by slice, (N, S, ...), or (N, 1, S, H, W).
        """
        if self._amplitude_norm is not None:
            return inputs
        if self.encoder.slices_apart is None:
            return self._frozen(inputs)
        slices: Tensor = self._frozen(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        return slices

    def _frozen(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            if self.encoder.tokenizer is not None:
                return self.freeze(inputs)
            pixels = (inputs - self._mean) / self._std
            return self.freeze(one_channel(pixels) if self.encoder.whole_volumes else pixels)

    def forward(
        self, params: Mapping[str, Tensor], fixed: Tensor, *, training: bool, sizes: Sequence[int] | None = None
    ) -> Tensor:
        """Return class scores (K, B, C) for prefixes (K, B, ...); see ``features``."""
        return self.classify(params, self.features(params, fixed, training=training, sizes=sizes))

    def features(
        self,
        params: Mapping[str, Tensor],
        fixed: Tensor,
        *,
        training: bool,
        sizes: Sequence[int] | None = None,
        counting: Counting | None = None,
    ) -> Tensor:
        """Return what the classifier sees, (K, B, W), for prefixes (K, B, ...).

        A decoder sees (K, B, L, P, D), the tokens of the P patches after L blocks. A network that scores pixels itself
        has no classifier: (K, B, C, H, W) are then its scores.

        ``training`` lets running statistics follow the batch (they are updated in place in ``params``), ``counting``
        what a sub-model counts. ``sizes``: how many of its B places each client fills; the rest count for nothing, and
        where a network mixes images their features are zero.
        """
        if sizes is not None and len(set(sizes)) > 1 and self.mixes_images(training=training):
            return self._ragged(params, fixed, sizes, training, counting)
        slices = self.encoder.slices_apart
        if slices is not None:
            # The slices of a client's volumes stand side by side, as images would.
            fixed = fixed.flatten(1, 2)
            counting = counting and replace(counting, places=counting.places.repeat_interleave(slices, 1))
        fixed = self._harmonised(params, fixed, training)
        found = self.encode(params, fixed, training=training, counting=counting).to(float_type(fixed))
        return found if slices is None else found.unflatten(1, (-1, slices)).mean(2)

    def _ragged(
        self,
        params: Mapping[str, Tensor],
        fixed: Tensor,
        sizes: Sequence[int],
        training: bool,
        counting: Counting | None,
    ) -> Tensor:
        """``features`` of batches of unequal sizes: clients with equal ones go together.

        What normalises over the batch must not see the places that a smaller batch leaves empty.
        """
        own = {name for name, value in params.items() if value.dim() > len(self.specs[name].shape)}
        features: Tensor | None = None
        for size in sorted(set(sizes)):
            rows = [row for row, filled in enumerate(sizes) if filled == size]
            some = {name: value[rows] if name in own else value for name, value in params.items()}
            places = counting and replace(counting, places=counting.places[rows, :size])
            part = self.features(some, fixed[rows, :size], training=training, counting=places)
            for name in own if training else ():
                if self.specs[name].kind in ("buffer", "count"):
                    params[name][rows] = some[name]
            if features is None:
                features = part.new_zeros(*fixed.shape[:2], *part.shape[2:])
            features[rows, :size] = part
        assert features is not None, "there is a client"
        return features

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

    def classify(self, params: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Return class scores (K, B, C) of features (K, B, W), or (K, B, C, H, W) of every pixel."""
        if self.encoder.per_pixel:
            return features
        if self.decoder is not None:
            own = {name.removeprefix("decoder."): params[name] for name in params if name.startswith("decoder.")}
            stacked = {name for name, value in own.items() if value.dim() > len(self.specs[f"decoder.{name}"].shape)}
            return each_client(self.decoder, own, stacked, features)
        if self._text is None:
            scores = torch.matmul(features, params["head.weight"].transpose(-1, -2))
            if not self.encoder.head_bias:
                return scores
            bias = params["head.bias"]
            return scores + (bias[:, None] if bias.dim() == 2 else bias)
        scale = params["logit_scale"] if self.config.train_logit_scale else torch.tensor(self._logit_scale)
        scale = scale.to(features.device).exp().reshape(-1, 1, 1)
        return scale * F.normalize(features, dim=-1) @ self._text.T


class FrozenEncoder(StackedModel):
    """A classifier that trains behind an encoder that does not: the features are the prefix."""

    def freeze(self, pixels: Tensor) -> Tensor:
        with self._precision():
            features: Tensor = self.net(pixels)
        return features.to(float_type(pixels))

    def encode(
        self, params: Mapping[str, Tensor], fixed: Tensor, *, training: bool, counting: Counting | None
    ) -> Tensor:
        return fixed


def float_type(inputs: Tensor) -> torch.dtype:
    """Return the type of features: that of the inputs, float32 for token ids."""
    return inputs.dtype if inputs.is_floating_point() else torch.float32
