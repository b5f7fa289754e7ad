"""An exported adapter on the library's unmodified model gives what the tower gives with the factors in it."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from fedsim.config.words import LoraConfig, ModelConfig
from fedsim.errors import UserError
from fedsim.models.encoders import Encoder, Tower, library_model, load_encoder
from fedsim.models.export import export_peft
from tests.unit.models.models_clip_folders import write_biomed, write_clip

TARGETS = [("q", "k", "v"), ("v", "q"), ("k", "proj"), ("proj",), ("q", "v", "MLP"), ("MLP",)]
CLASSES = ["benign", "scan"]


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(5))


def random_factors(tower: Tower, lora: LoraConfig) -> dict[str, Tensor]:
    """Factors for the targeted layers, none of them zero."""
    wanted = [word for word in "qkv" if word in lora.target]
    generator = torch.Generator().manual_seed(9)
    params = {}
    for path, layer in tower.named_modules():
        word = path.rpartition(".")[2]
        if not path.startswith("blocks.") or not isinstance(layer, nn.Linear):
            continue
        count, width = (len(wanted), layer.out_features // 3) if word == "qkv" else (1, layer.out_features)
        if count and (word == "qkv" or word in lora.target):
            params[f"{path}.lora_a"] = torch.randn(count, lora.r, layer.in_features, generator=generator)
            # Small: rounding is blown up where attention saturates.
            params[f"{path}.lora_b"] = 0.02 * torch.randn(count, width, lora.r, generator=generator)
    return params


def add_to_outputs(tower: Tower, lora: LoraConfig, params: dict[str, Tensor]) -> None:
    """The definition of LoRA, as an addition to every targeted layer's output; needs all outputs of the last block."""
    tower.last_block = lambda block, tokens: block(tokens)
    slices = [index for index, word in enumerate("qkv") if word in lora.target]
    for path in (name.removesuffix(".lora_a") for name in params if name.endswith(".lora_a")):
        a, b = params[f"{path}.lora_a"], params[f"{path}.lora_b"]
        where = slices if path.endswith(".qkv") else [0]

        def add(
            _: nn.Module, inputs: Any, out: Tensor, a: Tensor = a, b: Tensor = b, where: Sequence[int] = where
        ) -> Tensor:
            out = out.clone()
            for g, index in enumerate(where):
                update = inputs[0] @ a[g].T @ b[g].T * (lora.lora_alpha / lora.r)
                out[..., index * len(b[g]) : (index + 1) * len(b[g])] += update
            return out

        tower.get_submodule(path).register_forward_hook(add)


def exported(folder: Path, config: ModelConfig, size: int) -> tuple[Encoder, dict[str, Tensor]]:
    encoder = load_encoder(config, size, CLASSES, seed=4)
    assert encoder.tower is not None
    assert config.lora is not None
    params = random_factors(encoder.tower, config.lora)
    if config.classifier == "linear":
        stream = torch.Generator().manual_seed(3)
        drawn = torch.randn(2, encoder.width + 1, generator=stream)
        params |= {"head.weight": drawn[:, 1:].clone(), "head.bias": drawn[:, 0].clone()}
    export_peft(folder, params, SimpleNamespace(config=config, encoder=encoder))
    add_to_outputs(encoder.tower, config.lora, params)
    return encoder, params


def check(folder: Path, config: ModelConfig, size: int) -> None:
    encoder, _ = exported(folder, config, size)
    base: Any = library_model(config, size, seed=4).eval()
    untouched = base.encode_image if config.name.startswith("open_clip") else base
    with torch.no_grad():
        plain = untouched(images(size))
        adapted: Any = peft.PeftModel.from_pretrained(base, folder).eval()
        forward = adapted.encode_image if config.name.startswith("open_clip") else adapted
        features = encoder.net(images(size))
        torch.testing.assert_close(forward(images(size)), features, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, features, atol=0.01)


def lora_for(target: Sequence[str], mlp: str) -> LoraConfig:
    words = tuple(mlp if word == "MLP" else word for word in target)
    return LoraConfig(r=3, lora_alpha=0.5, target=words)


@pytest.mark.filterwarnings("error::UserWarning:peft")  # peft warns of missing or unknown factors
@pytest.mark.parametrize("target", TARGETS)
def test_timm(tmp_path: Path, target: Sequence[str]) -> None:
    config = ModelConfig(
        name="timm:vit_tiny_patch16_224",
        weights="random",
        options={"embed_dim": 32, "depth": 2, "num_heads": 4, "init_values": 0.5},
        lora=lora_for(target, "fc1"),
    )
    check(tmp_path / "adapter", config, 32)


@pytest.mark.filterwarnings("error::UserWarning:peft")
@pytest.mark.parametrize("target", [target for target in TARGETS if "proj" not in target])
def test_open_clip_with_multihead_attention(tmp_path: Path, target: Sequence[str]) -> None:
    write_clip(tmp_path)
    config = ModelConfig(name=f"open_clip:local-dir:{tmp_path}", lora=lora_for(target, "c_fc"))
    check(tmp_path / "adapter", config, 32)


def test_the_output_projection_that_peft_doubles_is_refused(tmp_path: Path) -> None:
    write_clip(tmp_path)
    config = ModelConfig(name=f"open_clip:local-dir:{tmp_path}", lora=LoraConfig(target=("q", "proj")))
    with pytest.raises(UserError, match=r"model\.lora\.target: found proj with open_clip"):
        load_encoder(config, 32, CLASSES, seed=0)


@pytest.mark.filterwarnings("error::UserWarning:peft")
@pytest.mark.parametrize("target", [("q", "v"), ("k", "proj", "MLP")])
def test_open_clip_with_a_tower_of_timm(tmp_path: Path, target: Sequence[str]) -> None:
    write_biomed(tmp_path)
    config = ModelConfig(name=f"open_clip:local-dir:{tmp_path}", lora=lora_for(target, "fc2"))
    check(tmp_path / "adapter", config, 32)


@pytest.mark.parametrize(
    ("name", "classifier"),
    [("timm", "linear"), ("packaged", "linear"), ("open_clip", "linear"), ("open_clip", "text")],
)
def test_the_readme_does_what_it_says(tmp_path: Path, name: str, classifier: str) -> None:
    words: dict[str, Any] = {"lora": LoraConfig(r=2), "classifier": classifier}
    if name == "timm":
        words |= {"name": "timm:test_vit", "weights": "random", "options": {"qk_norm": True}}
    elif name == "packaged":
        words |= {"name": "packaged:vit_small_dino"}
    else:
        write_clip(tmp_path)
        words |= {"name": f"open_clip:local-dir:{tmp_path}"}
    size = 28 if name == "packaged" else 32
    encoder, params = exported(tmp_path / "adapter", ModelConfig(**words), size)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "adapter/README.md").read_text(), re.DOTALL)
    space = {"FOLDER": str(tmp_path / "adapter"), "images": images(size)}
    exec(code, space)
    with torch.no_grad():
        features = encoder.net(images(size))
        if encoder.text_features is None:
            expected = features @ params["head.weight"].T + params["head.bias"]
        else:
            expected = torch.nn.functional.normalize(features, dim=-1) @ encoder.text_features.T / 0.07
    torch.testing.assert_close(space["logits"], expected, rtol=1e-4, atol=1e-4)
