"""Towers of Hugging Face models give the library's outputs, whatever the padding, and their adapters load in peft."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from huggingface_hub import constants
from torch import Tensor

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models import hub
from fedsim.models.encoders import Encoder, library_model, load_encoder
from fedsim.models.export import export_peft
from fedsim.models.lora import add_lora
from tests.unit.models.models_hugging_folders import write_hugging

LENGTHS = (7, 4, 1, 6)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def texts(num_padding: int = 0, num_segments: int = 2) -> Tensor:
    """Token ids and segments (N, 2, T) of texts of different lengths."""
    width = max(LENGTHS) + num_padding
    generator = torch.Generator().manual_seed(5)
    inputs = torch.stack([torch.full((len(LENGTHS), width), -1), torch.zeros(len(LENGTHS), width).long()], 1)
    for row, length in enumerate(LENGTHS):
        inputs[row, 0, :length] = torch.randint(1, 12, (length,), generator=generator)
        inputs[row, 1, length // 2 : length] = num_segments - 1
    return inputs.int()


def library_features(model: Any, inputs: Tensor, pooling: str) -> Tensor:
    ids, mask = inputs[:, 0].clamp(min=0).long(), (inputs[:, 0] >= 0).long()
    out = model(input_ids=ids, attention_mask=mask, token_type_ids=inputs[:, 1].long())
    states = out.last_hidden_state
    if pooling == "mean":
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return out.pooler_output if pooling == "pooler" else states[:, 0]


def config_of(folder: Path, **changes: Any) -> ModelConfig:
    return ModelConfig.model_validate({"name": f"hf:{folder}", "train": "head", **changes})


def pool(folder: Path, mode: str) -> None:
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{name}": name == mode for name in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))


@pytest.mark.parametrize(
    ("kind", "pooling", "segments"),
    [("bert", "pooler", 2), ("bert", "mean", 2), ("bert", "first", 2), ("roberta", "first", 1)],
)
def test_texts_with_and_without_padding(tmp_path: Path, kind: str, pooling: str, segments: int) -> None:
    model = write_hugging(tmp_path, kind)
    if kind == "bert" and pooling != "pooler":
        pool(tmp_path, {"mean": "mean_tokens", "first": "cls_token"}[pooling])
    net = load_encoder(config_of(tmp_path), 16, ["one", "two"], 0).net
    with torch.no_grad():
        expected = library_features(model, texts(num_segments=segments), pooling)
        for num_padding in (0, 5):
            torch.testing.assert_close(net(texts(num_padding, segments)), expected, **CLOSE)
        for row, length in enumerate(LENGTHS):
            alone = texts(num_segments=segments)[row : row + 1, :, :length]
            torch.testing.assert_close(net(alone)[0], expected[row], **CLOSE)


def test_images(tmp_path: Path) -> None:
    model = write_hugging(tmp_path, "vit")
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}')
    encoder = load_encoder(config_of(tmp_path), 16, ["one", "two"], 0)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(encoder.net(images), model(images).last_hidden_state[:, 0], **CLOSE)
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


def adapted(folder: Path, target: tuple[str, ...], **words: Any) -> tuple[Encoder, ModelConfig, dict[str, Tensor], Any]:
    """An encoder with LoRA layers, and factors none of which is zero."""
    config = config_of(folder, train="lora", lora={"r": 3, "lora_alpha": 1.5, "target": list(target), **words})
    encoder = load_encoder(config, 16, ["one", "two"], 0)
    assert encoder.tower is not None
    assert config.lora is not None
    layers = add_lora(encoder.tower.blocks, "blocks", config.lora)
    generator = torch.Generator().manual_seed(9)
    shapes = {name: shape for layer in layers for name, shape in layer.shapes.items()}
    params = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    params |= {"head.weight": torch.randn(2, encoder.width), "head.bias": torch.randn(2)}
    return encoder, config, params, layers


@pytest.mark.filterwarnings("error::UserWarning:peft")  # peft warns of missing or unknown factors
@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("bert", ("q", "k", "v")),
        ("bert", ("v", "q", "attention.output.dense")),
        ("roberta", ("k", "intermediate.dense")),
        ("vit", ("q", "v")),
        ("vit", ("k", "proj", "fc1")),
    ],
)
@pytest.mark.parametrize("words", [{}, {"use_dora": True, "init_lora_weights": "pissa", "use_rslora": True}])
def test_the_adapter_loads_in_peft(tmp_path: Path, kind: str, target: tuple[str, ...], words: dict[str, Any]) -> None:
    write_hugging(tmp_path / "model", kind)
    encoder, config, params, layers = adapted(tmp_path / "model", target, **words)
    export_peft(tmp_path / "adapter", params, SimpleNamespace(config=config, encoder=encoder))
    for layer in layers:
        layer.bind(params)
    base: Any = library_model(config, 16, 0).eval()
    inputs = torch.randn(2, 3, 16, 16) if kind == "vit" else texts(2, 1)
    pooling = {"bert": "pooler", "roberta": "first", "vit": ""}[kind]

    def features(model: Any) -> Tensor:
        if kind == "vit":
            return model(inputs).last_hidden_state[:, 0]  # type: ignore[no-any-return]  # the library's own output
        return library_features(model, inputs, pooling)

    with torch.no_grad():
        plain = features(base)
        loaded = features(peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval())
        found = encoder.net(inputs)
    torch.testing.assert_close(loaded, found, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, found, atol=0.01)


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_gradients_are_those_of_the_library(tmp_path: Path, kind: str) -> None:
    """The CPU kernel with its mask, and the shortened last block, against plain autograd over the whole."""
    write_hugging(tmp_path / "model", kind)
    encoder, config, params, layers = adapted(tmp_path / "model", ("q", "k", "v"))
    export_peft(tmp_path / "adapter", params, SimpleNamespace(config=config, encoder=encoder))
    leaves = {name: value.requires_grad_() for name, value in params.items() if name.endswith("lora_b")}
    for layer in layers:
        layer.bind(params)
    inputs = torch.randn(2, 3, 16, 16) if kind == "vit" else texts(2)
    loss = encoder.net(inputs).square().sum()
    own = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    base: Any = library_model(config, 16, 0).eval()
    model: Any = peft.PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True).eval()
    out = model(inputs).last_hidden_state[:, 0] if kind == "vit" else library_features(model, inputs, "pooler")
    out.square().sum().backward()
    names = ("query", "key", "value") if kind == "bert" else ("q_proj", "k_proj", "v_proj")
    for name, grad in own.items():
        for place, part in enumerate(names):
            theirs = [p for n, p in model.named_parameters() if f"{library_path(name, kind)}.{part}.lora_B" in n]
            torch.testing.assert_close(grad[place], theirs[0].grad, rtol=1e-4, atol=1e-4)


def library_path(name: str, kind: str) -> str:
    number = name.split(".")[1]
    return f"encoder.layer.{number}.attention.self" if kind == "bert" else f".layers.{number}.attention"


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.name hf:.*no such model"):
        load_encoder(config_of(tmp_path / "no such model"), 16, ["a"], 0)
    write_hugging(tmp_path, "vit")
    with pytest.raises(UserError, match=r"data\.image_size: found 24 .*expected 16"):
        load_encoder(config_of(tmp_path), 24, ["a"], 0)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match=r"found a model of type gpt2; expected one of bert, roberta, vit"):
        load_encoder(config_of(tmp_path), 16, ["a"], 0)


def test_a_name_on_the_hub_is_what_its_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of the hub's local cache, with what the files beside the weights say."""
    cached = tmp_path / "models--me--bert"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    write_hugging(cached / "snapshots" / "abc")
    pool(cached / "snapshots" / "abc", "mean_tokens")
    monkeypatch.setattr(hub, "hub_problem", lambda: "the hub did not answer (no cable)")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = ModelConfig(name="hf:me/bert", train="head")
    found = load_encoder(config, 16, ["a"], 0).net(texts())
    torch.testing.assert_close(found, load_encoder(config_of(cached / "snapshots" / "abc"), 16, ["a"], 0).net(texts()))
    with pytest.raises(UserError, match=r"model\.name hf:me/absent: found the hub did not answer \(no cable\)"):
        load_encoder(ModelConfig(name="hf:me/absent", train="head"), 16, ["a"], 0)


def test_weights_must_be_whole(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_hugging(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layer.1.output.dense.bias"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"no tensor encoder\.layer\.1\.output\.dense\.bias; expected .* BertModel"):
        load_encoder(config_of(tmp_path), 16, ["a"], 0)


def test_random_weights_follow_the_seed(tmp_path: Path) -> None:
    write_hugging(tmp_path, hidden_dropout_prob=0.5)
    config = config_of(tmp_path, weights="random")
    one, same, other = (load_encoder(config, 16, ["a"], seed).net.train()(texts()) for seed in (1, 1, 2))
    assert torch.equal(one, same), "neither weights nor dropout differ"
    assert not torch.allclose(one, other)
