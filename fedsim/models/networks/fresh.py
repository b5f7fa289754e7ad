"""Networks that begin with random weights: MONAI's U-Net and DenseNet121, and HarmoFL's of both kinds.

All are drawn from torch's global stream. UserError for options that they do not take and images that they cannot take.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fedsim.config.mistakes import show
from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.networks.unet import UNet, without_statistics
from fedsim.models.plain import refusals
from fedsim.models.weights import load_into

#: What MONAI's U-Net needs and has no default for.
UNET_OPTIONS = {"channels": [16, 32, 64, 128], "strides": [2, 2, 2]}
FORMS = ("paper", "released")


def monai_unet(config: ModelConfig, image_size: int, class_names: Sequence[str]) -> nn.Module:
    """MONAI's U-Net, which scores every pixel: fresh, or with the weights of a file."""
    options = {**UNET_OPTIONS, **config.options}
    _check_levels(options)
    with refusals(config, image_size):
        refuse_dropout(config)
        from monai.networks.nets.unet import UNet as MonaiUNet  # late: monai takes seconds to import

        net: nn.Module = MonaiUNet(spatial_dims=2, in_channels=3, out_channels=len(class_names), **options)
    if config.weights != "random":
        load_into(net, Path(str(config.weights)), f"model.weights {config.weights}")
    return net


def harmofl_unet(config: ModelConfig, image_size: int, class_names: Sequence[str]) -> nn.Module:
    """HarmoFL's U-Net, which scores every pixel."""
    with refusals(config, image_size):
        own, form = _with_form(config)
        return without_statistics(UNet(num_classes=len(class_names), **{"num_features": 32, **own}), form)


def monai_densenet121(config: ModelConfig, image_size: int, class_names: Sequence[str]) -> nn.Module:
    """MONAI's DenseNet121 up to its 1024 features; options may make it narrower."""
    del class_names
    with refusals(config, image_size):
        refuse_dropout(config)
        return densenet121(config.options, spatial_dims=2, in_channels=3)


def harmofl_densenet121(config: ModelConfig, image_size: int, class_names: Sequence[str]) -> nn.Module:
    """The same with HarmoFL's normalisation."""
    del class_names
    with refusals(config, image_size):
        own, form = _with_form(config)
        return without_statistics(densenet121(own, spatial_dims=2, in_channels=3), form)


def _check_levels(options: Mapping[str, Any]) -> None:
    """UserError unless MONAI's U-Net has levels: it passes over strides too many, and names no key itself."""
    channels, strides = options["channels"], options["strides"]
    for key, values in (("channels", channels), ("strides", strides)):
        if not isinstance(values, list) or not all(type(value) is int and value > 0 for value in values):
            raise UserError(f"model.options.{key}", show(values), "a list of whole numbers above 0")
    if len(channels) < 2 or len(strides) != len(channels) - 1:
        found = f"{len(channels)} channels and {len(strides)} strides"
        raise UserError("model.options.strides", found, "two channels or more, and a stride between each two")


def refuse_dropout(config: ModelConfig) -> None:
    """ValueError for options about dropout."""
    if random := [key for key in config.options if "dropout" in key]:
        raise ValueError(f"{random[0]}: a run draws all random numbers from its seed, and dropout does not")


def _with_form(config: ModelConfig) -> tuple[dict[str, Any], Any]:
    """The network's own options, and HarmoFL's form."""
    refuse_dropout(config)
    own = dict(config.options)
    form = own.pop("form", "paper")
    if form not in FORMS:
        raise ValueError(f"form: {form}, not one of {', '.join(FORMS)}")
    return own, form


def densenet121(options: Mapping[str, Any], *, spatial_dims: int, in_channels: int) -> nn.Module:
    """MONAI's DenseNet121 up to its features."""
    from monai.networks.nets.densenet import DenseNet121  # late, as above

    words = {"spatial_dims": spatial_dims, "in_channels": in_channels, "out_channels": 1, "pretrained": False}
    net: Any = DenseNet121(**words, **options)
    net.class_layers.out = nn.Identity()
    return net  # type: ignore[no-any-return]  # monai says Any
