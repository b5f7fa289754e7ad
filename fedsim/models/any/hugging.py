"""Hugging Face's encoders of images that are taken as they are, beside the towers of ``fedsim/models/hugging.py``.

Each resizes its positions in its own way: Dinov2Model without antialiasing and without DINOv2's offset, so that away
from the size that it was trained at it is not quite timm's model of the same weights, nor the packaged one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.utils import logging

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.any.net import MEAN_OF_PIXELS, POOLED, POOLED_PIXEL, LibraryNet
from fedsim.models.folders import access, normalisation, preprocessing, weight_files
from fedsim.models.timm_vit import check_divides, feature_width
from fedsim.models.tower import Encoder
from fedsim.models.weights import check_kinds, in_float32, read_weights

# A progress bar, and a report whose missing tensors are looked at below.
logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the library has no types here
logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # as above

CONTENT = "a folder or hub name with config.json and model.safetensors or pytorch_model.bin"
#: What drops or shifts something at random while a network trains.
RANDOM = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "dropout", "drop_path_rate"),
    *("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"),
)


@dataclass(frozen=True)
class Vision:
    """The library's class of a type of model, how its features are read, and whether patches must cover the image.

    ``part``: whose settings count, where the folder is of a larger model.
    """

    library: str
    reads: str = POOLED
    in_patches: bool = True
    part: bool = False


VISION = {
    "dinov2": Vision("Dinov2Model"),
    "dinov2_with_registers": Vision("Dinov2WithRegistersModel"),
    "dinov3_vit": Vision("DINOv3ViTModel"),
    "clip": Vision("CLIPVisionModel", part=True),
    "clip_vision_model": Vision("CLIPVisionModel"),
    "siglip": Vision("SiglipVisionModel", part=True),
    "siglip_vision_model": Vision("SiglipVisionModel"),
    "sam": Vision("SamVisionModel", MEAN_OF_PIXELS, part=True),
    "sam_vision_model": Vision("SamVisionModel", MEAN_OF_PIXELS),
    "swin": Vision("SwinModel", in_patches=False),
    "convnext": Vision("ConvNextModel", in_patches=False),
    "resnet": Vision("ResNetModel", POOLED_PIXEL, in_patches=False),
}


def build_vision(config: ModelConfig, settings: Any, source: str, image_size: int) -> nn.Module:
    """The library's model of images that a folder's settings ask for, without whatever stands beside or behind it.

    UserError for images that its patches do not cover, and as ``load_library``.
    """
    row = VISION[settings.model_type]
    settings = settings.vision_config if row.part else settings
    for name in RANDOM:
        if getattr(settings, name, None):
            setattr(settings, name, None if name.startswith("pos_embed") else 0.0)
    if row.in_patches:
        check_divides(image_size, int(settings.patch_size), config.name)
    return load_library(getattr(transformers, row.library), config, settings, source)


def load_library(library: Any, config: ModelConfig, settings: Any, source: str, **words: Any) -> nn.Module:
    """A model of a class of the library's in eval mode, with the source's weights, or random ones, in float32.

    UserError for missing files and tensors, and for such of other shapes or kinds.
    """
    where = f"model.name {config.name}"
    with access(source, where, CONTENT):
        if config.weights == "random":
            fresh: nn.Module = library(settings, **words)
            return fresh
        state: dict[str, Tensor] = {}
        for file in weight_files(source):
            state |= in_float32(read_weights(file, where))
        words |= {"dtype": torch.float32, "output_loading_info": True}
        # Of other shapes the library would name none.
        words["ignore_mismatched_sizes"] = True
        model, report = library.from_pretrained(None, config=settings, state_dict=state, **words)
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise UserError(where, f"tensor {name} of shape {tuple(stored)}", f"{tuple(wanted)}, as config.json says")
    for name in sorted(report["missing_keys"]):
        raise UserError(where, f"no tensor {name}", f"weights of a whole {library.__name__}")
    check_kinds(state, model, where)
    built: nn.Module = model.eval()
    return built


def encoder_of_vision(model: Any, config: ModelConfig, image_size: int, class_names: Sequence[str]) -> Encoder:
    """Wrap a model of ``build_vision`` with the normalisation that its folder names.

    UserError where it names none.
    """
    del class_names
    source, where = config.name.removeprefix("hf:"), f"model.name {config.name}"
    content = preprocessing(source, where)
    if content is None:
        raise UserError(where, "no preprocessor_config.json", "one with image_mean and image_std")
    mean, std = normalisation(content.get("image_mean"), content.get("image_std"), where)
    row = next(row for row in VISION.values() if row.library == type(model).__name__)
    net = LibraryNet(model, row.reads).eval()
    return Encoder(net, feature_width(net, image_size, config.name), mean, std, image_size)
