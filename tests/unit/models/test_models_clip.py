"""open_clip encoders and the text classifier, on small models that are read from a folder."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import nn
from torch.nn.functional import normalize

from fedsim.config.words import LoraConfig, ModelConfig
from fedsim.errors import UserError
from fedsim.models import hub
from fedsim.models.attention import Attention, ClipAttention
from fedsim.models.encoders import library_model, load_encoder
from tests.unit.models.models_clip_folders import OWN_VISION, PREPROCESS, tokens, write_biomed, write_clip

CLASSES = ["benign scan", "scan"]
OWN_VARIANTS = [
    {},
    {"ls_init_value": 0.3, "pool_type": "avg"},
    {"no_ln_pre": True, "final_ln_after_pool": True, "pool_type": "avg"},
    {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 4},
    {"qk_norm": True, "scale_attn": True},  # open_clip's own attention, which stays
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "hub_problem", lambda: "the hub did not answer (no cable)")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def config_of(folder: Path, **words: Any) -> ModelConfig:
    return ModelConfig(name=f"open_clip:local-dir:{folder}", lora=LoraConfig(r=2), **words)


def images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("words", OWN_VARIANTS)
@pytest.mark.parametrize("size", [32, 48])
def test_own_tower_gives_what_open_clip_gives(tmp_path: Path, words: dict[str, Any], size: int) -> None:
    write_clip(tmp_path, OWN_VISION | words)
    original: Any = library_model(config_of(tmp_path), size, seed=0).eval()
    encoder = load_encoder(config_of(tmp_path), size, CLASSES, seed=0)
    with torch.no_grad():
        expected = original.encode_image(images(size))
        torch.testing.assert_close(encoder.net(images(size)), expected, rtol=1e-5, atol=1e-5)
    assert encoder.tower is not None
    assert (encoder.width, list(encoder.mean), list(encoder.std)) == (24, *PREPROCESS.values())
    for name, parameter in encoder.tower.named_parameters():
        if ".attn." not in name:
            assert torch.equal(parameter, original.get_parameter(encoder.tower.source_path(name)))


def test_multihead_attention_becomes_two_plain_linear_layers(tmp_path: Path) -> None:
    write_clip(tmp_path)
    tower = load_encoder(config_of(tmp_path), 32, CLASSES, seed=0).tower
    assert tower is not None
    for block in tower.blocks:
        assert type(block.attn) is ClipAttention
        assert type(block.attn.qkv) is type(block.attn.proj) is nn.Linear


def test_text_features_are_those_of_the_prompts_and_the_text_tower_is_gone(tmp_path: Path) -> None:
    model: Any = write_clip(tmp_path)
    encoder = load_encoder(config_of(tmp_path, prompt="an image of {}"), 32, CLASSES, seed=0)
    prompts = ["an image of benign scan", "an image of scan"]
    with torch.no_grad():
        expected = normalize(model.encode_text(tokens(tmp_path, prompts)), dim=-1)
    assert encoder.text_features is not None
    torch.testing.assert_close(encoder.text_features, expected)
    assert not encoder.text_features.requires_grad
    assert encoder.logit_scale == math.log(1 / 0.07)
    assert not any("text" in name or "token_embedding" in name for name, _ in encoder.net.named_modules())


def test_linear_classifier_needs_no_text(tmp_path: Path) -> None:
    write_clip(tmp_path)
    encoder = load_encoder(config_of(tmp_path, classifier="linear"), 32, CLASSES, seed=0)
    assert encoder.text_features is None
    assert encoder.logit_scale is None


@pytest.mark.parametrize("size", [160, 32])
def test_model_like_biomedclip(tmp_path: Path, size: int) -> None:
    model: Any = write_biomed(tmp_path)
    original: Any = library_model(config_of(tmp_path), size, seed=0).eval()
    encoder = load_encoder(config_of(tmp_path), size, CLASSES, seed=0)
    with torch.no_grad():
        features = encoder.net(images(size))
        torch.testing.assert_close(features, original.encode_image(images(size)), rtol=1e-5, atol=1e-5)
        if size == 160:
            torch.testing.assert_close(features, model.encode_image(images(size)), rtol=1e-5, atol=1e-5)
        prompts = [f"a photo of a {name}." for name in CLASSES]
        text = normalize(model.encode_text(tokens(tmp_path, prompts)), dim=-1)
    assert encoder.text_features is not None
    torch.testing.assert_close(encoder.text_features, text)
    assert not torch.allclose(text[0], text[1])
    assert encoder.tower is not None
    assert all(type(block.attn) is Attention for block in encoder.tower.blocks)
    for name, parameter in encoder.tower.named_parameters():
        assert torch.equal(parameter, original.get_parameter(encoder.tower.source_path(name)))


def test_random_weights_come_from_the_seed(tmp_path: Path) -> None:
    write_clip(tmp_path)
    first, same, other, stored = (
        load_encoder(config_of(tmp_path, weights=weights), 32, CLASSES, seed).net(images(32))
        for weights, seed in (("random", 1), ("random", 1), ("random", 2), (None, 1))
    )
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, stored)


def test_residual_net_trains_whole_but_refuses_lora(tmp_path: Path) -> None:
    write_clip(tmp_path, {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8})
    whole = ModelConfig(name=f"open_clip:local-dir:{tmp_path}", train="all")
    assert load_encoder(whole, 32, CLASSES, seed=0).tower is None
    with pytest.raises(UserError, match="no plain transformer"):
        load_encoder(config_of(tmp_path), 32, CLASSES, seed=0)


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*open_clip_config\.json"):
        load_encoder(config_of(tmp_path), 32, CLASSES, seed=0)
    write_biomed(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match=r"no config\.json; .* nobody/bert-of-the-hub"):
        load_encoder(config_of(tmp_path), 32, CLASSES, seed=0)
    write_biomed(tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no file of weights; expected open_clip_model\.safetensors"):
        load_encoder(config_of(tmp_path), 160, CLASSES, seed=0)
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match="JSONDecodeError"):
        load_encoder(config_of(tmp_path), 160, CLASSES, seed=0)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    write_clip(tmp_path)
    path = tmp_path / "open_clip_config.json"
    words = json.loads(path.read_text())
    words["model_cfg"]["vision_cfg"]["layers"] = 3
    path.write_text(json.dumps(words))
    with pytest.raises(UserError, match=r"Missing key.*resblocks\.2"):
        load_encoder(config_of(tmp_path), 32, CLASSES, seed=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-33", "ViT-B-32"),
        ("ViT-B-32", r"no default; expected one of openai"),
        (
            "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
            r"no cable.*open_clip_config\.json.*local-dir:PATH",
        ),
    ],
)
def test_mistakes_are_one_line(name: str, message: str) -> None:
    config = ModelConfig(name=f"open_clip:{name}", lora=LoraConfig(r=2))
    with pytest.raises(UserError, match=message) as caught:
        load_encoder(config, 224, CLASSES, seed=0)
    assert "\n" not in str(caught.value)


def test_image_size_must_be_whole_patches(tmp_path: Path) -> None:
    write_clip(tmp_path)
    with pytest.raises(UserError, match=r"20 for open_clip:.* multiple of 8, such as 16 or 24"):
        load_encoder(config_of(tmp_path), 20, CLASSES, seed=0)
