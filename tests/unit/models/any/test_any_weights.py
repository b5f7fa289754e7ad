"""Weights as most medical encoders are published: what torch.save wrote, under names of a training program's own."""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models import hub
from fedsim.models.encoders import load_encoder
from fedsim.models.networks.fresh import monai_unet
from fedsim.models.weights import read_weights
from tests.unit.models.any.networks_any import DEEP, TINY, build, drawn_images, drawn_params, write_vision
from tests.unit.models.any.test_any_encoders import scores_of_adapter

NAME, SIZE = "vit_tiny_patch16_224", 32
CLASSES = ["a", "b"]


def source(**words: Any) -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model(NAME, img_size=SIZE, **{"num_classes": 0, **DEEP, **words}).eval()


def config_of(path: Path, **words: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {"name": f"timm:{NAME}", "weights": str(path), "options": DEEP, "train": "head", **words}
    )


def prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


HEADS = {"head.weight": torch.ones(7, 32), "head.bias": torch.ones(7)}
DECODER = {
    "mask_token": torch.ones(1, 1, 8),
    "decoder_embed.weight": torch.ones(8, 32),
    "decoder_pos_embed": HEADS["head.bias"],
}
FILES: dict[str, Any] = {
    "plain": lambda state: state,
    "with a classifier": lambda state: {**state, **HEADS},
    "of a program": lambda state: {
        "state_dict": prefixed(state, "module."),
        "epoch": 3,
        "optimizer": {"lr": 1.0},
        "args": argparse.Namespace(lr=0.1),
    },
    "of MAE": lambda state: {"model": {**state, **DECODER}},
    "of DINO": lambda state: {
        "student": prefixed(state, "module.backbone.") | {"module.backbone.norm.weight": torch.zeros(32)},
        "teacher": prefixed(state, "backbone.") | {"head.mlp.0.weight": torch.ones(3, 32)},
    },
    "of lightning": lambda state: {
        "state_dict": prefixed(state, "model.encoder.") | {"model.decoder.0.weight": torch.ones(3)}
    },
    "of half precision": lambda state: {name: value.half() for name, value in state.items()},
}


@pytest.mark.parametrize("ending", ["pth", "pt", "bin"])
@pytest.mark.parametrize("kind", sorted(FILES))
def test_names_of_a_program_become_the_networks(tmp_path: Path, kind: str, ending: str) -> None:
    net = source()
    if kind == "of half precision":
        net = net.half().float()
    path = tmp_path / f"weights.{ending}"
    torch.save(FILES[kind](net.state_dict()), path)
    images = drawn_images(SIZE, 2)
    with torch.no_grad():
        found = load_encoder(config_of(path), SIZE, CLASSES, 0)
        torch.testing.assert_close(found.net(images), net(images), rtol=1e-5, atol=1e-6)
    left_out = {"of MAE": "decoder_embed, decoder_pos_embed, mask_token", "of lightning": "decoder"}
    assert [remark.partition(": ")[2] for remark in found.remarks] == ([left_out[kind]] if kind in left_out else [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state | {"blocks.1.adapter.weight": torch.ones(3)}, r"a tensor blocks\.1\.adapter\.weight; exp"),
        (lambda state: {"ema": state}, r"'ema' of OrderedDict; expected tensors by name"),
        (lambda state: [*state.values()], r"a file of list; expected tensors by name"),
        (lambda state: {name: value for name, value in state.items() if name != "norm.weight"}, r"norm\.weight"),
        (lambda state: state | {"norm.weight": torch.ones(31)}, r"norm\.weight"),
        (lambda state: prefixed(state, "elsewhere."), r"a tensor elsewhere\.\S+; expected none"),
        (lambda state: state | {"step": 5}, r"'step' of int; expected tensors by name"),
        (lambda state: state | {"norm.weight": torch.ones(32, dtype=torch.int64)}, r"norm\.weight of int64"),
        (lambda state: state | {"norm.weight": torch.full((32,), torch.nan)}, r"norm\.weight with nan"),
        (lambda _: HEADS, r"no tensor of an encoder"),
    ],
)
def test_what_fits_nowhere_is_named(tmp_path: Path, change: Any, words: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(change(source().state_dict()), path)
    with pytest.raises(UserError, match=words) as caught:
        load_encoder(config_of(path), SIZE, CLASSES, 0)
    assert "\n" not in str(caught.value)


class Runs:
    """What calls a function when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": source().state_dict(), "more": Runs(tmp_path / "made")}, path)
    with pytest.raises(UserError, match=r"expected tensors by name, as torch\.save writes them"):
        read_weights(path, "model.weights")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"\x80\x02}q\x00."])
def test_damaged_files_are_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pth") as caught:
        load_encoder(config_of(path), SIZE, CLASSES, 0)
    assert "\n" not in str(caught.value)


def test_a_bin_file_is_read_where_a_folder_has_no_safetensors(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert TINY["hf dinov2"].folder is not None
    write_vision(folder, **TINY["hf dinov2"].folder)
    config, images = ModelConfig(name=f"hf:{folder}", train="head"), drawn_images(24, 2)
    with torch.no_grad():
        expected = load_encoder(config, 24, CLASSES, 0).net(images)
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        assert torch.equal(load_encoder(config, 24, CLASSES, 0).net(images), expected)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"no file model\.safetensors; expected this, or pytorch_model\.bin"):
        load_encoder(config, 24, CLASSES, 0)


def test_an_encoder_of_images_needs_its_normalisation(tmp_path: Path) -> None:
    assert TINY["hf clip"].folder is not None
    write_vision(tmp_path / "model", **TINY["hf clip"].folder)
    config = ModelConfig(name=f"hf:{tmp_path / 'model'}", train="head")
    assert load_encoder(config, 16, CLASSES, 0).mean == (0.4, 0.5, 0.6)
    with pytest.raises(UserError, match=r"image"):
        load_encoder(config, 24, CLASSES, 0)
    settings = tmp_path / "model" / "preprocessor_config.json"
    nested = {"image_processor": json.loads(settings.read_text())}
    settings.rename(tmp_path / "model" / "processor_config.json").write_text(json.dumps(nested))
    assert load_encoder(config, 16, CLASSES, 0).mean == (0.4, 0.5, 0.6)
    (tmp_path / "model" / "processor_config.json").unlink()
    with pytest.raises(UserError, match=r"no preprocessor_config\.json"):
        load_encoder(config, 16, CLASSES, 0)


@pytest.mark.parametrize("kind", ["folder", "hub"])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_timms_own_folders_and_hub_names(
    tmp_path: Path, kind: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = source(num_classes=5)
    folder = tmp_path / "cache" / "models--somebody--tiny" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    arguments = {**DEEP, "img_size": SIZE}
    settings = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2], "input_size": [3, SIZE, SIZE], "num_classes": 5}
    words = {"architecture": NAME, "num_classes": 5, "model_args": arguments, "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps(words))
    if ending == "bin":
        torch.save(net.state_dict(), folder / "pytorch_model.bin")
    else:
        save_file(net.state_dict(), folder / "model.safetensors")
    name = f"timm:local-dir:{folder}"
    if kind == "hub":
        refs = folder.parents[1] / "refs"
        refs.mkdir()
        (refs / "main").write_text("abc")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hub, "hub_problem", lambda: "no cable")
        name = "timm:hf-hub:somebody/tiny"
    encoder = load_encoder(ModelConfig(name=name, train="head"), SIZE, CLASSES, 0)
    net.reset_classifier(0)  # type: ignore[operator]  # every timm model has it
    images = drawn_images(SIZE, 2)
    with torch.no_grad():
        torch.testing.assert_close(encoder.net(images), net(images), rtol=1e-5, atol=1e-6)
    assert (encoder.mean, encoder.tower is not None) == ((0.4, 0.5, 0.6), True)
    with pytest.raises(UserError, match=r"timm:(local-dir|hf-hub):.*elsewhere") as caught:
        load_encoder(
            ModelConfig(name=name.replace("abc", "elsewhere").replace("tiny", "elsewhere"), train="head"),
            32,
            CLASSES,
            0,
        )
    assert "\n" not in str(caught.value)


def test_lora_on_a_file_with_prefixes(tmp_path: Path) -> None:
    tiny = TINY["swin"]
    words = {**tiny.words["options"], "img_size": tiny.size, "num_classes": 4}
    net = timm.create_model(tiny.name.removeprefix("timm:"), **words)
    torch.save({"state_dict": prefixed(net.state_dict(), "module.backbone.")}, tmp_path / "swin.pth")
    model = build(tiny.config(tmp_path, weights=str(tmp_path / "swin.pth")), tiny.size)
    assert torch.equal(model.net.net.patch_embed.proj.weight, net.patch_embed.proj.weight)  # type: ignore[union-attr,operator]  # a Swin
    found, expected = scores_of_adapter(tmp_path, model, {k: v[0] for k, v in drawn_params(model, 1).items()})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_unet_begins_with_weights_of_a_file(tmp_path: Path) -> None:
    options = {"channels": [4, 8], "strides": [2]}
    words = {"name": "monai:unet", "train": "all", "options": options}
    net = monai_unet(ModelConfig.model_validate(words | {"weights": "random"}), 16, CLASSES)
    path = tmp_path / "unet.pth"
    torch.save({"state_dict": prefixed(net.state_dict(), "module.")}, path)
    config = ModelConfig.model_validate(words | {"weights": str(path)})
    images = drawn_images(16, 2)
    with torch.no_grad():
        assert torch.equal(load_encoder(config, 16, CLASSES, 0).net(images), net.eval()(images))
    with pytest.raises(UserError, match=r"unet\.pth.*size mismatch"):
        load_encoder(config, 16, ["a", "b", "c"], 0)
    torch.save(net.state_dict() | {"decoder.weight": torch.ones(2)}, path)
    with pytest.raises(UserError, match=r"a tensor decoder\.weight; expected none that the network lacks"):
        load_encoder(config, 16, CLASSES, 0)
