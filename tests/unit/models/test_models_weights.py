"""Weights of any floating-point type become float32; what is no weight is refused by its tensor's name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.encoders import Encoder, load_encoder
from tests.unit.models.models_clip_folders import write_biomed, write_clip
from tests.unit.models.models_hugging_folders import write_hugging

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 4}
KINDS = ("bert", "roberta", "vit", "timm", "clip", "biomed")
CLASSES = ["benign scan", "scan"]
#: A tensor of each kind that all features depend on, as its file has it.
PLACES = {
    "bert": "encoder.layer.1.output.dense.weight",
    "roberta": "encoder.layer.1.output.dense.weight",
    "vit": "encoder.layer.1.output.dense.weight",
    "timm": "blocks.1.mlp.fc2.weight",
    "clip": "visual.transformer.resblocks.1.mlp.c_fc.weight",
    "biomed": "text.proj.0.weight",
}


def write(folder: Path, kind: str) -> Path:
    """A small model of this kind in a new folder; return the file of its weights."""
    folder.mkdir()
    if kind == "timm":
        generator = torch.Generator().manual_seed(4)
        state = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, **TINY).state_dict()
        drawn = {name: 0.2 * torch.randn(value.shape, generator=generator) for name, value in state.items()}
        save_file(drawn, folder / "weights.safetensors")
        return folder / "weights.safetensors"
    if kind in ("clip", "biomed"):
        torch.manual_seed(4)
        (write_clip if kind == "clip" else write_biomed)(folder)
        return folder / "open_clip_model.safetensors"
    write_hugging(folder, kind)
    return folder / "model.safetensors"


def change(file: Path, function: Callable[[str, Tensor], Tensor]) -> None:
    state = load_file(file)
    save_file({name: function(name, tensor) for name, tensor in state.items()}, file, {"format": "pt"})


def load(file: Path, kind: str, size: int = 32) -> Encoder:
    words: dict[str, Any] = {"train": "head", "name": f"hf:{file.parent}"}
    if kind == "timm":
        words |= {"name": "timm:vit_tiny_patch16_224", "weights": str(file), "options": TINY}
    if kind in ("clip", "biomed"):
        words |= {"name": f"open_clip:local-dir:{file.parent}", "train": "all"}
    return load_encoder(ModelConfig.model_validate(words), 16 if kind == "vit" else size, CLASSES, 0)


def outputs(encoder: Encoder) -> list[Tensor]:
    """Features of made-up inputs, and those of the class prompts."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(2, 3, encoder.image_size, encoder.image_size, generator=generator)
    if encoder.tokenizer is not None:
        inputs = torch.zeros(2, 2, 5, dtype=torch.int32)
        inputs[:, 0] = torch.tensor([[2, 4, 5, 6, 3], [2, 8, 7, 3, -1]])
    with torch.no_grad():
        features = encoder.net(inputs)
    return [features] if encoder.text_features is None else [features, encoder.text_features]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    ("kind", "size"), [*((kind, 32) for kind in KINDS), ("timm", 64), ("clip", 48), ("biomed", 160)]
)
def test_stored_in_half_precision_they_are_those_of_the_same_file_in_float32(
    tmp_path: Path, kind: str, size: int, dtype: torch.dtype
) -> None:
    found = []
    for name, then in (("half", dtype), ("whole", torch.float32)):
        file = write(tmp_path / name, kind)
        change(file, lambda _, tensor, then=then: tensor.to(dtype).to(then) if tensor.is_floating_point() else tensor)
        settings = file.parent / "config.json"
        if settings.is_file():
            words = {**json.loads(settings.read_text()), "dtype": str(then).removeprefix("torch.")}
            settings.write_text(json.dumps(words))
        encoder = load(file, kind, size)
        assert {parameter.dtype for parameter in encoder.net.parameters()} == {torch.float32}
        found.append(outputs(encoder))
    for half, whole in zip(*found, strict=True):
        assert half.dtype == torch.float32
        assert torch.equal(half, whole)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_type_that_a_text_config_names_rounds_no_weight(tmp_path: Path, key: str) -> None:
    file = write(tmp_path / "model", "biomed")
    before = outputs(load(file, "biomed"))
    settings = file.parent / "config.json"
    words = json.loads(settings.read_text())
    words.pop("dtype", None)
    settings.write_text(json.dumps({**words, key: "float16"}))
    for found, expected in zip(outputs(load(file, "biomed")), before, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_integers_are_no_weights(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    file, place = write(tmp_path / "model", kind), PLACES[kind]
    change(file, lambda name, tensor: tensor.to(dtype) if name == place else tensor)
    words = rf"{place} of {str(dtype).removeprefix('torch.')}; expected weights as floating-point numbers"
    with pytest.raises(UserError, match=words):
        load(file, kind)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_must_be_finite(tmp_path: Path, kind: str, value: float) -> None:
    file, place = write(tmp_path / "model", kind), PLACES[kind]

    def with_one(name: str, tensor: Tensor) -> Tensor:
        if name == place:
            tensor[-1, -1] = value
        return tensor

    change(file, with_one)
    own = "layers.1.mlp.fc2.weight" if kind == "vit" else place  # the library renames it
    with pytest.raises(UserError, match=f"tensor {own} with {value}; expected finite numbers"):
        load(file, kind)


def test_integers_that_count_or_index_are_no_fault(tmp_path: Path) -> None:
    """Position numbers, which BERT's files hold, and the number of batches that a BatchNorm has seen."""
    file = write(tmp_path / "model", "bert")
    before = outputs(load(file, "bert"))
    state = load_file(file)
    save_file({**state, "bert.embeddings.position_ids": torch.arange(20)[None]}, file, {"format": "pt"})
    assert torch.equal(outputs(load(file, "bert"))[0], before[0])
    channels = {"channels": [4, 4, 8, 12]}
    save_file(timm.create_model("resnet18", **channels).state_dict(), tmp_path / "resnet.safetensors")
    words = {"name": "timm:resnet18", "weights": str(tmp_path / "resnet.safetensors"), "options": channels}
    assert load_encoder(ModelConfig.model_validate(words), 40, [], 0).width == 12


@pytest.mark.parametrize("state", [{}, {"head.weight": torch.zeros(3, 32), "head.bias": torch.zeros(3)}])
def test_a_file_without_an_encoder_never_means_other_weights(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: Any, **__: Any) -> None:
        raise AssertionError("timm asks for other weights")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", ask)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", ask)
    file = write(tmp_path / "model", "timm")
    save_file(state, file)
    with pytest.raises(UserError, match=rf"model\.weights {file}: found no tensor of an encoder"):
        load(file, "timm")


@pytest.mark.parametrize(("kind", "words"), [("clip", "found no tensor; expected"), ("bert", "found no tensor emb")])
def test_a_folder_with_an_empty_file_of_weights(tmp_path: Path, kind: str, words: str) -> None:
    file = write(tmp_path / "model", kind)
    save_file({}, file, {"format": "pt"})
    with pytest.raises(UserError, match=words):
        load(file, kind)


def test_weights_in_several_files(tmp_path: Path) -> None:
    """As the library writes large ones, with an index; each of its files must be there."""
    file = write(tmp_path / "model", "bert")
    before = outputs(load(file, "bert"))
    state = load_file(file)
    names = {name: f"part-{place % 2}.safetensors" for place, name in enumerate(state)}
    for part in set(names.values()):
        own = {name: tensor for name, tensor in state.items() if names[name] == part}
        save_file(own, file.parent / part, {"format": "pt"})
    file.unlink()
    (file.parent / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert torch.equal(outputs(load(file, "bert"))[0], before[0])
    (file.parent / "part-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"found no file part-1\.safetensors"):
        load(file, "bert")
