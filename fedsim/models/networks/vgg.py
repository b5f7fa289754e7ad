"""PRR-FL's slim VGG16, fresh, and its classifiers."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.networks.slim_vgg import STAGES, SlimVGG16
from fedsim.models.plain import plain_encoder
from fedsim.models.tower import Encoder

SMALLEST_SIDE = 2 ** len(STAGES)


def build_vgg(image_size: int) -> SlimVGG16:
    """A fresh network, drawn from torch's global stream; UserError for images that its poolings would use up."""
    if image_size < SMALLEST_SIDE:
        raise UserError("data.image_size", f"{image_size} with the slim VGG16", f"at least {SMALLEST_SIDE}")
    return SlimVGG16()


def vgg16_slim(config: ModelConfig, image_size: int, class_names: Sequence[str]) -> nn.Module:
    """The same for the catalogue."""
    del config, class_names
    return build_vgg(image_size)


def without_bias(net: nn.Module, config: ModelConfig, image_size: int, class_names: Sequence[str]) -> Encoder:
    """Wrap it with a classifier without bias, as released."""
    return replace(plain_encoder(net, config, image_size, class_names), head_bias=False)
