"""How a program without fedsim makes the network that a run's weights fit: lines of Python for model cards."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fedsim.config.words import ModelConfig
from fedsim.models.networks import slim_vgg, unet
from fedsim.models.networks.fresh import UNET_OPTIONS
from fedsim.models.packaged import ARCHITECTURE

#: Where the networks of fedsim's own come from, by how their names begin.
SOURCES = {"fedsim:harmofl_": unet, "fedsim:vgg16_slim": slim_vgg}
SOURCE = ("import runpy", 'network = runpy.run_path(FOLDER + "/network.py")')
DENSENET = ("import torch", "from monai.networks.nets import DenseNet121")
NO_CLASSIFIER = "model.class_layers.out = torch.nn.Identity()"


def source_of(name: str) -> Path | None:
    """Return the file that makes a network of fedsim's own, which needs torch alone; None for those of libraries."""
    found = [module.__file__ for start, module in SOURCES.items() if name.startswith(start)]
    return Path(str(found[0])) if found else None


def build_lines(config: ModelConfig, net: nn.Module, image_size: int, class_names: Sequence[str]) -> list[str]:
    """Return the lines that make ``model``, with weights that are yet to be loaded.

    ``net``: of ``trained_network``. For a network of fedsim's own the folder has network.py, a copy of ``source_of``;
    where nobody but the user makes it, the line says so.
    """
    name, options = config.name, dict(config.options)
    if name == "packaged:vit_small_dino":
        return _called("timm", "create_model", ARCHITECTURE, img_size=image_size, num_classes=0)
    if name.startswith("timm:"):
        import timm

        short = name.removeprefix("timm:")
        sized = {"img_size": image_size} if timm.get_pretrained_cfg(short).fixed_input_size else {}
        return _called("timm", "create_model", short, num_classes=0, **sized, **options)
    if name.startswith("fedsim:vgg16_slim"):
        return [*SOURCE, 'model = network["SlimVGG16"]()']
    if name.startswith("fedsim:harmofl_"):
        return _harmofl(name, options, len(class_names))
    if name == "monai:unet":
        sizes = {"spatial_dims": 2, "in_channels": 3, "out_channels": len(class_names)}
        words: dict[str, Any] = {**sizes, **UNET_OPTIONS, **options}
        return ["from monai.networks.nets import UNet", f"model = UNet({_shown(**words)})"]
    if name == "monai:densenet121":
        return [*DENSENET, f"model = {_densenet(options)}", NO_CLASSIFIER]
    if name == "monai:densenet121_3d":
        shown = _shown(spatial_dims=3, in_channels=1, out_channels=1, **options)
        return [*DENSENET, f"model = DenseNet121({shown})", NO_CLASSIFIER]
    if name == "monai:resnet18_3d":
        shown = _shown(spatial_dims=3, n_input_channels=1, feed_forward=False, **options)
        return ["from monai.networks.nets import resnet18", f"model = resnet18({shown})"]
    if name.startswith("open_clip:"):
        short = name.removeprefix("open_clip:")
        return _called("open_clip", "create_model", short, load_weights=False, force_image_size=image_size)
    if type(net).__module__.startswith("transformers."):
        pooled = {"add_pooling_layer": getattr(net, "pooler", None) is not None}
        pooled = pooled if "add_pooling_layer" in inspect.signature(type(net)).parameters else {}
        shown = ", ".join(["transformers.AutoConfig.from_pretrained(FOLDER)", *filter(None, [_shown(**pooled)])])
        return ["import transformers", f"model = transformers.{type(net).__name__}({shown})"]
    return [f"model = ...  # the network that {name} makes, which no library has"]


def _harmofl(name: str, options: dict[str, Any], num_classes: int) -> list[str]:
    form = options.pop("form", "paper")
    if name == "fedsim:harmofl_densenet121":
        model = f'model = network["without_statistics"]({_densenet(options)}, {form!r})'
        return [*DENSENET, *SOURCE, model, NO_CLASSIFIER]
    shown = _shown(**{"num_features": 32, **options}, num_classes=num_classes)
    return [*SOURCE, f'model = network["without_statistics"](network["UNet"]({shown}), {form!r})']


def _densenet(options: dict[str, Any]) -> str:
    return f"DenseNet121({_shown(spatial_dims=2, in_channels=3, out_channels=1, **options)})"


def _called(module: str, function: str, *arguments: Any, **words: Any) -> list[str]:
    return [f"import {module}", f"model = {module}.{function}({_shown(*arguments, **words)})"]


def _shown(*arguments: Any, **words: Any) -> str:
    return ", ".join([*map(repr, arguments), *(f"{key}={value!r}" for key, value in words.items())])
