"""The golden files, and the image tower of DEeR's: timm's vision transformer with open_clip's bias-free projection.

Other files with the same keys may lie here in the place of these: whatever is a size or a count is read from them.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedsim.config.words import ModelConfig
from fedsim.models.build import stack
from fedsim.models.stacked import StackedModel
from fedsim.models.timm_vit import TimmTower
from fedsim.models.tower import Encoder

FOLDER = Path(__file__).parent
FACTOR_OF_Q = re.compile(r"lora_image_encoder\.trunk\.(.+)\.linear_([ab])_q\.weight")


def load(name: str) -> dict[str, Tensor]:
    """The numeric arrays of a file."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: torch.from_numpy(value) for key in file.files if (value := file[key]).dtype.kind in "fib"}


def load_words(name: str) -> dict[str, Any]:
    """The strings of a file: lists, and what the JSON says where there is one."""
    with np.load(FOLDER / f"{name}.npz") as file:
        found = {key: value for key in file.files if (value := file[key]).dtype.kind == "U"}
    return {key: value.tolist() if value.ndim else json.loads(str(value)) for key, value in found.items()}


def below(arrays: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {key.removeprefix(start): value for key, value in arrays.items() if key.startswith(start)}


def tags(names: Iterable[str], pattern: str) -> list[str]:
    """What the group of a pattern stands for in the names that begin with it: each once, in their order."""
    found = (re.match(pattern, name) for name in names)
    return list(dict.fromkeys(match[1] for match in found if match))


def numbers(names: Iterable[str], pattern: str) -> list[int]:
    return [int(tag) for tag in tags(names, pattern)]


def assert_close(found: Tensor, expected: Tensor, name: str = "", scale: float = 1.0) -> None:
    """To 1e-5 of the tensor's largest element, or of ``scale`` where they are smaller."""
    bound = 1e-5 * max(scale, expected.abs().max().item() if expected.numel() else 0.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=bound, msg=lambda text: f"{name}: {text}")


def find_num_heads(width: int, error: Callable[[int], float]) -> int:
    """The number of attention heads, which no file of DEeR's names: the divisor of ``width`` with the least error."""
    return min((number for number in range(1, width + 1) if width % number == 0), key=error)


def build_tower(base: Mapping[str, Tensor], image_size: int, num_heads: int) -> TimmTower:
    """The tower with the golden weights ``base``, their names without ``base/``."""
    width = base["trunk.cls_token"].shape[-1]
    trunk = VisionTransformer(
        img_size=image_size,
        patch_size=base["trunk.patch_embed.proj.weight"].shape[-1],
        embed_dim=width,
        depth=len(tags(base, r"trunk\.blocks\.(\d+)\.")),
        num_heads=num_heads,
        mlp_ratio=len(base["trunk.blocks.0.mlp.fc1.weight"]) / width,
        num_classes=0,
    )
    trunk.load_state_dict(below(base, "trunk."))
    head = nn.Linear(width, len(base["head.weight"]), bias=False)
    head.load_state_dict(below(base, "head."))
    return TimmTower(trunk, "trunk", head, "head").eval()


def build(
    tower: TimmTower, text_features: Tensor, image_size: int, r: int, lora_alpha: float, logit_scale: float
) -> StackedModel:
    """The golden model with LoRA on q, k and v, its class scores from ``text_features``, its scale trained."""
    lora = {"r": r, "lora_alpha": lora_alpha}
    words = ModelConfig.model_validate({"name": "open_clip:golden", "lora": lora, "train_logit_scale": True})
    num_classes, width = text_features.shape
    encoder = Encoder(tower, width, (0.0,) * 3, (1.0,) * 3, image_size, text_features, logit_scale)
    return stack(words, encoder, num_classes, torch.device("cpu"))


def as_params(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The release's separate factors of q, k and v under our names, stacked by slice; other tensors as they are.

    Our factors of K clients have the slices second, (K, 3, ...), as the release's have the client first.
    """
    params = {name: value for name, value in factors.items() if "lora_" not in name}
    for name in factors:
        if match := FACTOR_OF_Q.fullmatch(name):
            layer, kind = match.groups()
            slices = [factors[name.replace("_q.weight", f"_{word}.weight")] for word in "qkv"]
            params[f"{layer}.lora_{kind}"] = torch.stack(slices, dim=-3)
    return params
