"""The image tower of the golden DEeR vectors: timm's vision transformer with open_clip's bias-free projection."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedsim.config import ModelConfig
from fedsim.models.stacked import StackedModel
from fedsim.models.timm_vit import TimmTower
from fedsim.models.tower import Encoder

FOLDER = Path(__file__).parent
LOGIT_SCALE = float(np.log(1 / 0.07))


def load(name: str) -> dict[str, Tensor]:
    """The numeric arrays of a file."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: torch.from_numpy(value) for key in file.files if (value := file[key]).dtype.kind in "fib"}


def below(arrays: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {key.removeprefix(start): value for key, value in arrays.items() if key.startswith(start)}


def build_tower(base: Mapping[str, Tensor]) -> TimmTower:
    """The tower with the golden weights ``base``, their names without ``base/``."""
    width = base["trunk.cls_token"].shape[2]
    out = base["head.weight"].shape[0]
    trunk = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=width, depth=2, num_heads=3, mlp_ratio=2, num_classes=0
    )
    trunk.load_state_dict(below(base, "trunk."))
    head = nn.Linear(width, out, bias=False)
    head.load_state_dict(below(base, "head."))
    return TimmTower(trunk, "trunk", head, "head").eval()


def build(base: Mapping[str, Tensor], text_features: Tensor, r: int) -> StackedModel:
    """The golden model with LoRA on q, k and v, its class scores from ``text_features``, its scale trained."""
    words = {"name": "open_clip:golden", "lora": {"r": r, "lora_alpha": 8}, "train_logit_scale": True}
    net = build_tower(base)
    encoder = Encoder(net, len(base["head.weight"]), (0.0,) * 3, (1.0,) * 3, 16, text_features, LOGIT_SCALE)
    return StackedModel(ModelConfig.model_validate(words), encoder, len(text_features), torch.device("cpu"))


def as_params(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The release's separate factors of q, k and v under our names, stacked by slice; other tensors as they are.

    Our factors of K clients have the slices second, (K, 3, ...), as the release's have the client first.
    """
    params = {name: value for name, value in factors.items() if "lora_" not in name}
    for block in (0, 1):
        start = f"lora_image_encoder.trunk.blocks.{block}.attn.qkv.linear"
        for kind in "ab":
            slices = [factors[f"{start}_{kind}_{word}.weight"] for word in "qkv"]
            params[f"blocks.{block}.attn.qkv.lora_{kind}"] = torch.stack(slices, dim=-3)
    return params
