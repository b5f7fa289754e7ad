"""Encoders of many kinds at tiny sizes, with weights under which every layer counts, as a config names them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from fedsim.config.words import ModelConfig
from fedsim.models.any.tuned_net import TunedNet
from fedsim.models.build import build_models
from fedsim.models.stacked import StackedModel

CLASSES = ["benign", "scan", "other"]
CLIENTS, IMAGES = 3, 2
MODULE = "tests.unit.models.any.networks_any"
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
WIDE = {**VIT, "intermediate_size": 48}


@dataclass(frozen=True)
class Tiny:
    """``name`` and ``words`` of a config's model section, but ``lora``; ``targets``: which layers are tried.

    ``folder``: the settings of a model of Hugging Face's that is written to the folder that ``name`` leaves open.
    """

    name: str
    size: int
    targets: tuple[tuple[str, ...], ...]
    words: Mapping[str, Any] = field(default_factory=dict)
    folder: Mapping[str, Any] | None = None
    r: int = 2

    def config(self, folder: Path, target: tuple[str, ...] = (), **words: Any) -> ModelConfig:
        """The model section, with LoRA on ``target``; a folder of weights is written first, if there is none."""
        if self.folder is not None and not folder.exists():
            write_vision(folder, **self.folder)
        lora = {"r": self.r, "lora_alpha": 2, "target": target or self.targets[0]}
        section = {"name": self.name.format(folder), "lora": lora, **self.words, **words}
        return ModelConfig.model_validate(section)


def timm(name: str, size: int, targets: tuple[tuple[str, ...], ...], r: int = 2, **options: Any) -> Tiny:
    return Tiny(f"timm:{name}", size, targets, {"weights": "random", "options": options}, r=r)


def hugging(size: int, targets: tuple[tuple[str, ...], ...], **folder: Any) -> Tiny:
    return Tiny("hf:{}", size, targets, folder=folder)


ATTENTION = (("q", "k", "v"), ("q", "v", "proj", "fc1"), ("all-linear",))
DEEP = {"embed_dim": 32, "depth": 2, "num_heads": 2}
TINY = {
    "eva02": timm("eva02_base_patch14_224", 28, (("q", "k", "v"), ("v", "proj", "fc1_x"), ("all-linear",)), **DEEP),
    "dinov3": timm("vit_small_patch16_dinov3", 32, ATTENTION, init_values=0.5, **DEEP),
    "sam": timm(
        # 4 x 4 patches in windows of 3: the last ones are filled up.
        *("samvit_base_patch16", 64, (*ATTENTION, ("q", "patch_embed.proj", "neck.2"))),
        **DEEP | {"window_size": 3, "global_attn_indexes": [1], "neck_chans": 16},
    ),
    "swin": timm(
        *("swin_tiny_patch4_window7_224", 32, (*ATTENTION, ("reduction",))),
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=2,
    ),
    "convnext": timm(
        *("convnext_tiny", 32, (("fc1", "fc2"), ("fc1", "stem.0", "downsample.1"), ("conv_dw",))),
        16,
        depths=[1, 1, 1, 1],
        dims=[8, 8, 8, 16],
        ls_init_value=0.5,
    ),
    "resnet": timm("resnet18", 32, (("all-conv",), ("conv2",)), channels=[4, 4, 8, 12], zero_init_last=False),
    "hf dinov2": hugging(24, ATTENTION, kind="Dinov2", layerscale_value=0.5, mlp_ratio=2, **VIT),
    "hf dinov3": hugging(
        24, (("q", "v"), ("proj", "up_proj")), kind="DINOv3ViT", num_register_tokens=2, layerscale_value=0.5, **WIDE
    ),
    "hf clip": hugging(16, (*ATTENTION, ("fc2", "patch_embedding")), kind="CLIPVision", projection_dim=8, **WIDE),
    "hf siglip": hugging(16, (("q", "v", "fc2"),), kind="SiglipVision", **WIDE),
    "hf sam": hugging(
        *(32, (("q", "v"), ("lin1", "neck.conv1"))),
        **WIDE | {"kind": "SamVision", "image_size": 32, "window_size": 3, "output_channels": 8},
        global_attn_indexes=[1],
        mlp_dim=48,
        num_pos_feats=16,
    ),
    "own": Tiny(f"{MODULE}.mixed", 12, (("all-conv",), ("all-linear",), ("0", "fc")), {"options": {"width": 4}}),
    "unet": Tiny(
        *("monai:unet", 16, (("all-conv",),)),
        {"weights": "random", "options": {"channels": [4, 8], "strides": [2], "num_res_units": 1}},
    ),
}


class Mixed(nn.Module):
    """Convolutions, one of them of groups, BatchNorm, and a linear layer on pixels that come last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.GELU())
        self.grouped = nn.Conv2d(width, 2 * width, 3, padding="same", groups=2)
        self.fc = nn.Linear(2 * width, 5)
        for buffer in (self.first[1].running_mean, self.first[1].running_var):
            buffer.copy_(torch.rand(width) + 0.5)

    def forward(self, images: Tensor) -> Tensor:
        pixels = self.grouped(self.first(images)).permute(0, 2, 3, 1)
        out: Tensor = torch.tanh(self.fc(pixels)).mean((1, 2))
        return out


def mixed(config: ModelConfig, image_size: int) -> nn.Module:
    del image_size
    width = config.options["width"]
    assert isinstance(width, int)
    return Mixed(width)


def write_vision(folder: Path, kind: str, **settings: Any) -> Any:
    """Save a model of images of Hugging Face's, whose every weight is random, with a normalisation; return it."""
    torch.manual_seed(2)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + (parameter == 1))
    model.save_pretrained(folder)
    write_normalisation(folder)
    return model


def write_normalisation(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.2]}')


def build(config: ModelConfig, size: int) -> TunedNet:
    model, _ = build_models(config, size, CLASSES, 4, torch.device("cpu"))
    assert isinstance(model, TunedNet)
    return model


def drawn_params(model: StackedModel, clients: int) -> dict[str, Tensor]:
    """All parameters, each client's own, random enough for every layer to count."""
    generator = torch.Generator().manual_seed(9)
    params = {}
    for name, spec in model.specs.items():
        scale = 0.1 if name.endswith("lora_b") else spec.shape[-1] ** -0.5
        params[name] = scale * torch.randn(clients, *spec.shape, generator=generator)
    return params


def drawn_images(size: int, *count: int) -> Tensor:
    return torch.rand(*count, 3, size, size, generator=torch.Generator().manual_seed(5))
