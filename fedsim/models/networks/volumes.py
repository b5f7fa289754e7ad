"""MONAI's networks for whole volumes, in three dimensions, with random weights.

Shapes: N volumes, S slices, H and W pixels of a slice (H = W = ``data.image_size``).
"""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.hub import user_errors
from fedsim.models.networks.fresh import densenet121, refuse_dropout
from fedsim.models.plain import HALF
from fedsim.models.tower import Encoder


def monai_densenet121_3d(config: ModelConfig, image_size: int, class_names: Sequence[str]) -> nn.Module:
    """MONAI's DenseNet121 in three dimensions up to its 1024 features; options may make it narrower."""
    del class_names
    with _refusals(config, image_size, image_size):
        refuse_dropout(config)
        return densenet121(config.options, spatial_dims=3, in_channels=1)


def monai_resnet18_3d(config: ModelConfig, image_size: int, class_names: Sequence[str]) -> nn.Module:
    """MONAI's ResNet-18 in three dimensions up to its 512 features."""
    del class_names
    with _refusals(config, image_size, image_size):
        refuse_dropout(config)
        from monai.networks.nets.resnet import resnet18  # late: monai takes seconds to import

        words = {"pretrained": False, "spatial_dims": 3, "n_input_channels": 1, "feed_forward": False}
        net: nn.Module = resnet18(**words, **config.options)
        return net


def encoder_of_volumes(net: nn.Module, config: ModelConfig, image_size: int, class_names: Sequence[str]) -> Encoder:
    """Wrap a network for grey volumes (N, 1, S, H, W) in -1..1. UserError for a side that it cannot take."""
    del class_names
    return Encoder(net, width_of(net, config, image_size, image_size), HALF, HALF, image_size, whole_volumes=True)


def require_volumes(encoder: Encoder, config: ModelConfig) -> None:
    """UserError where the inputs are no volumes, or have too few slices for the network."""
    if encoder.slices is None:
        found = f"{config.name}, which takes whole volumes, with a set of images or texts"
        raise UserError("model.name", found, "a set of volumes, which has data.slices, or another network")
    width_of(encoder.net, config, encoder.image_size, encoder.slices)


def width_of(net: nn.Module, config: ModelConfig, image_size: int, slices: int) -> int:
    """Return how many features a network gives of volumes of this size, of which nothing is computed."""
    volumes = torch.zeros(2, 1, slices, image_size, image_size, device="meta")
    with _refusals(config, image_size, slices), torch.no_grad():
        features: object = copy.deepcopy(net).to("meta").eval()(volumes)
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(_place(config, image_size, slices), f"outputs {found} for two volumes", "(N, width) features")
    return features.shape[1]


def _refusals(config: ModelConfig, image_size: int, slices: int) -> AbstractContextManager[None]:
    return user_errors(_place(config, image_size, slices), "options that it takes, and volumes that its levels divide")


def _place(config: ModelConfig, image_size: int, slices: int) -> str:
    return f"model.options of {config.name}, data.image_size {image_size}, data.slices {slices}"
