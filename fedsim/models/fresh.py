"""Networks that begin with random weights: slim VGG16, MONAI's U-Net and DenseNet121, and HarmoFL's of both kinds."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fedsim.config import ModelConfig
from fedsim.config_errors import show
from fedsim.errors import UserError
from fedsim.models.hub import user_errors
from fedsim.models.tower import Encoder
from fedsim.models.unet import UNet, without_statistics
from fedsim.models.vgg import build_vgg, encoder_of_vgg

HALF = (0.5, 0.5, 0.5)
#: What MONAI's U-Net needs and has no default for.
UNET_OPTIONS = {"channels": [16, 32, 64, 128], "strides": [2, 2, 2]}
FORMS = ("paper", "released")


def fresh_encoder(config: ModelConfig, image_size: int, num_classes: int) -> Encoder:
    """Build the network that ``config.name`` asks for, drawn from torch's global stream, in eval mode.

    UserError for options that it does not take and images that it cannot take.
    """
    if config.name.startswith("fedsim:vgg16"):
        return encoder_of_vgg(build_vgg(image_size), image_size, head_bias=config.name.endswith("_biased"))
    if config.name == "monai:unet":
        _check_levels({**UNET_OPTIONS, **config.options})
    where = f"model.options of {config.name}, data.image_size {image_size}"
    with user_errors(where, "options that it takes, and images that its levels divide"):
        net = _build(config.name, config.options, num_classes).eval()
        with torch.no_grad():
            shape = tuple(net(torch.zeros(1, 3, image_size, image_size)).shape)
    per_pixel = len(shape) == 4
    if per_pixel and shape[2:] != (image_size, image_size):
        raise UserError(where, f"scores of {shape[2]} x {shape[3]} pixels", "scores of every pixel")
    return Encoder(net, shape[1], HALF, HALF, image_size, per_pixel=per_pixel)


def _check_levels(options: Mapping[str, Any]) -> None:
    """UserError unless MONAI's U-Net has levels: it passes over strides too many, and names no key itself."""
    channels, strides = options["channels"], options["strides"]
    for key, values in (("channels", channels), ("strides", strides)):
        if not isinstance(values, list) or not all(type(value) is int and value > 0 for value in values):
            raise UserError(f"model.options.{key}", show(values), "a list of whole numbers above 0")
    if len(channels) < 2 or len(strides) != len(channels) - 1:
        found = f"{len(channels)} channels and {len(strides)} strides"
        raise UserError("model.options.strides", found, "two channels or more, and a stride between each two")


def _build(name: str, options: Mapping[str, Any], num_classes: int) -> nn.Module:
    if random := [key for key in options if "dropout" in key]:
        raise ValueError(f"{random[0]}: a run draws all random numbers from its seed, and dropout does not")
    if name == "monai:unet":
        from monai.networks.nets.unet import UNet as MonaiUNet  # late: monai takes seconds to import

        net: nn.Module = MonaiUNet(
            spatial_dims=2, in_channels=3, out_channels=num_classes, **{**UNET_OPTIONS, **options}
        )
        return net
    if name == "monai:densenet121":
        return _densenet(options)
    own = dict(options)
    form = own.pop("form", "paper")
    if form not in FORMS:
        raise ValueError(f"form: {form}, not one of {', '.join(FORMS)}")
    net = UNet(num_classes=num_classes, **{"num_features": 32, **own}) if name.endswith("_unet") else _densenet(own)
    return without_statistics(net, form)


def _densenet(options: Mapping[str, Any]) -> nn.Module:
    """MONAI's DenseNet121, with random weights, up to its 1024 features; options may make it narrower."""
    from monai.networks.nets.densenet import DenseNet121  # late, as above

    net: Any = DenseNet121(spatial_dims=2, in_channels=3, out_channels=1, pretrained=False, **options)
    net.class_layers.out = nn.Identity()
    return net  # type: ignore[no-any-return]  # monai says Any
