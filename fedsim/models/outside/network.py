"""The library's own network with a run's trained weights in it, and that network from images to class scores.

Shapes: N images, S slices of a volume, H and W pixels, C classes, L blocks that a decoder reads, P patches of D
numbers.
"""

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.catalogue.functions import is_import_path
from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.amplitude import AmplitudeNorm
from fedsim.models.any.conv import LoRAConv2d
from fedsim.models.decoder.export import read_blocks
from fedsim.models.decoder.nets import Decoded
from fedsim.models.encoders import first_network
from fedsim.models.export import export_peft
from fedsim.models.outside.amplitudes import START
from fedsim.models.outside.states import library_state
from fedsim.models.specs import NUM_TOKENS, PROXIES, ZEROS
from fedsim.models.stacked import StackedModel
from fedsim.models.tower import Adaptable, Encoder

#: What of a run's parameters is written or merged here, by how the names begin or end, or is the clients' sub-model's.
KNOWN_STARTS = (
    *("net.", "head.", "decoder.", "amplitude_norm.", "logit_scale", "lora_rank"),
    *(PROXIES, ZEROS, NUM_TOKENS),
)
KNOWN_ENDS = (".lora_a", ".lora_b", ".lora_magnitude", ".shift")


def trained_network(model: StackedModel, params: Mapping[str, Tensor], class_names: Sequence[str]) -> nn.Module:
    """Return the network as ``library_model`` makes it, on the CPU, in float32 and eval mode, with what was trained.

    LoRA's factors are merged, in float32: an update is often smaller than what a bf16 weight can tell. Where a layer
    is ``unmergeable`` they stay beside the weights, in a model of peft's. UserError for trained parts that no library
    has.
    """
    config, encoder = model.config, model.encoder
    if odd := [name for name in params if not (name.startswith(KNOWN_STARTS) or name.endswith(KNOWN_ENDS))]:
        raise UserError("model", f"{odd[0]}, trained beside the library's network", "adapter/ in the run folder")
    base = first_network(config, encoder.image_size, encoder.seed, class_names)
    if config.lora is not None:
        base = _adapted(base, model, params)
    elif state := library_state(encoder.net, params):
        # The text tower of a whole CLIP trains nowhere, and your own network may be anything; all else must be there.
        missing, unexpected = base.load_state_dict(state, strict=False)
        assert not unexpected, f"the library knows no {unexpected[0]}"
        may_lack = config.name.startswith("open_clip:") or is_import_path(config.name)
        assert may_lack or not missing, f"nothing was trained of {missing[0]}"
    return base.eval().requires_grad_(False)


def unmergeable(encoder: Encoder) -> str | None:
    """Return the path, in the library's network, of an adapted convolution of groups; None where there is none.

    Its factors see all channels, its kernel those of a group: no kernel holds their product, and peft merges none.
    """
    groups = (
        path
        for path, module in encoder.net.named_modules()
        if isinstance(module, LoRAConv2d) and len(module.slices) > 1
    )
    first = next(groups, None)
    return None if first is None else encoder.adaptable.source_path(first)


def _adapted(base: nn.Module, model: StackedModel, params: Mapping[str, Tensor]) -> nn.Module:
    """Return the library's network with the adapter that a run writes, merged into its weights where peft can."""
    import peft  # late: it takes seconds

    trained: Any = model
    with TemporaryDirectory(prefix="fedsim-") as folder, warnings.catch_warnings():
        # peft asks transformers' models for a property that is called otherwise now, and warns of what is told above.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "LoRA adapter added to ConvNd layer with groups", UserWarning)
        export_peft(Path(folder), params, trained)
        adapted: Any = peft.PeftModel.from_pretrained(base, folder)
    found: nn.Module = adapted if unmergeable(model.encoder) else adapted.merge_and_unload()
    return found


def features_line(config: ModelConfig, encoder: Encoder) -> str:
    """How the features are read, in Python, from the library's ``model`` and normalised ``images``."""
    if config.name.startswith("open_clip:"):
        return "model.encode_image(images, normalize=False)"
    if encoder.whole_volumes:
        return "model(images[:, :, :1].transpose(1, 2))"
    return encoder.net.library_features if isinstance(encoder.net, Adaptable) else Adaptable.library_features


class Scoring(nn.Module):
    """From images (N, 3, H, W), floats in 0..1, to class scores (N, C) before the softmax, or (N, C, H, W) of pixels.

    Volumes are (N, S, 3, H, W). ``net``: the ``trained_network`` of the same arguments. UserError for texts.
    """

    mean: Tensor
    std: Tensor
    head_weight: Tensor
    head_text_features: Tensor
    head_logit_scale: Tensor

    def __init__(
        self, model: StackedModel, params: Mapping[str, Tensor], class_names: Sequence[str], net: nn.Module
    ) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        config, encoder = model.config, model.encoder
        if encoder.tokenizer is not None:
            raise UserError("model.name", f"{config.name}, which reads texts", "a run on images")
        self.net = net
        self.per_pixel, self.slices = encoder.per_pixel, encoder.slices_apart
        self.decoded: Decoded | None = None
        if encoder.decoder is not None:
            start = "decoder."
            own = {name.removeprefix(start): value.cpu() for name, value in params.items() if name.startswith(start)}
            decoder = copy.deepcopy(encoder.decoder).cpu().eval()
            decoder.load_state_dict(own)
            self.decoded = Decoded(net, decoder, *read_blocks(encoder))
        self.features = compile(features_line(config, encoder), "<features>", "eval")
        self.amplitude_norm: nn.Module | None = None
        if config.amplitude_norm is not None:
            size = encoder.image_size
            self.amplitude_norm = AmplitudeNorm(config.amplitude_norm, 3, size, size).eval()
            own = {name.removeprefix(START): params[name].cpu() for name in params if name.startswith(START)}
            self.amplitude_norm.load_state_dict(own)
        self.register_buffer("mean", torch.tensor(encoder.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(encoder.std).view(1, 3, 1, 1))
        self.is_text = encoder.text_features is not None
        for name, value in head_of(encoder, params).items():
            self.register_buffer(f"head_{name}", value)

    def forward(self, images: Tensor) -> Tensor:
        """Return the class scores."""
        if self.slices is not None:
            images = images.flatten(0, 1)
        if self.amplitude_norm is not None:
            images = self.amplitude_norm(images)
        images = (images - self.mean) / self.std
        if self.decoded is not None:
            scores: Tensor = self.decoded(images)
            return scores
        # The very line that the model card shows: our own text, and never a user's.
        found: Tensor = eval(self.features, {"model": self.net, "images": images})
        if self.slices is not None:
            found = found.unflatten(0, (-1, self.slices)).mean(1)
        if self.per_pixel:
            return found
        if self.is_text:
            return self.head_logit_scale.exp() * F.normalize(found, dim=-1) @ self.head_text_features.T
        return F.linear(found, self.head_weight, getattr(self, "head_bias", None))


def head_of(encoder: Encoder, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the classifier: ``weight`` (C, W) and perhaps ``bias``, or ``text_features`` and ``logit_scale``."""
    if encoder.per_pixel or encoder.decoder is not None:
        return {}
    if encoder.text_features is not None:
        scale = params.get("logit_scale", torch.tensor(encoder.logit_scale or math.nan))
        return {"text_features": encoder.text_features.cpu(), "logit_scale": scale.cpu()}
    return {part: params[f"head.{part}"].cpu() for part in ("weight", "bias") if f"head.{part}" in params}
