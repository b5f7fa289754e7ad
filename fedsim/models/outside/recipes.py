"""How a program without fedsim makes the network that a run's weights fit: lines of Python for model cards."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from fedsim.config.words import ModelConfig
from fedsim.models.networks.fresh import UNET_OPTIONS
from fedsim.models.packaged import ARCHITECTURE


def build_lines(config: ModelConfig, net: nn.Module, image_size: int, class_names: Sequence[str]) -> list[str]:
    """Return the lines that make ``model``, with weights that are yet to be loaded.

    ``net``: of ``trained_network``. Where nobody but the user or fedsim makes the network, the line says so.
    """
    name, options = config.name, dict(config.options)
    if name == "packaged:vit_small_dino":
        return _called("timm", "create_model", ARCHITECTURE, img_size=image_size, num_classes=0)
    if name.startswith("timm:"):
        import timm

        short = name.removeprefix("timm:")
        sized = {"img_size": image_size} if timm.get_pretrained_cfg(short).fixed_input_size else {}
        return _called("timm", "create_model", short, num_classes=0, **sized, **options)
    if name == "monai:unet":
        sizes = {"spatial_dims": 2, "in_channels": 3, "out_channels": len(class_names)}
        words: dict[str, Any] = {**sizes, **UNET_OPTIONS, **options}
        return ["from monai.networks.nets import UNet", f"model = UNet({_shown(**words)})"]
    if name == "monai:densenet121":
        shown = _shown(spatial_dims=2, in_channels=3, out_channels=1, **options)
        lines = ["import torch", "from monai.networks.nets import DenseNet121", f"model = DenseNet121({shown})"]
        return [*lines, "model.class_layers.out = torch.nn.Identity()"]
    if name.startswith("open_clip:"):
        short = name.removeprefix("open_clip:")
        return _called("open_clip", "create_model", short, load_weights=False, force_image_size=image_size)
    if type(net).__module__.startswith("transformers."):
        pooled = {"add_pooling_layer": getattr(net, "pooler", None) is not None}
        pooled = pooled if "add_pooling_layer" in inspect.signature(type(net)).parameters else {}
        shown = ", ".join(["transformers.AutoConfig.from_pretrained(FOLDER)", *filter(None, [_shown(**pooled)])])
        return ["import transformers", f"model = transformers.{type(net).__name__}({shown})"]
    return [f"model = ...  # the network that {name} makes, which no library has"]


def _called(module: str, function: str, *arguments: Any, **words: Any) -> list[str]:
    return [f"import {module}", f"model = {module}.{function}({_shown(*arguments, **words)})"]


def _shown(*arguments: Any, **words: Any) -> str:
    return ", ".join([*map(repr, arguments), *(f"{key}={value!r}" for key, value in words.items())])
