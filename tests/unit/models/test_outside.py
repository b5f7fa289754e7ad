"""The library's own network with what was trained in it gives the scores of the run's model."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.config.amplitude import AmplitudeNormConfig
from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.amplitude import AmplitudeNorm
from fedsim.models.build import build_models
from fedsim.models.encoders import library_model
from fedsim.models.outside.amplitudes import RealAmplitudeNorm
from fedsim.models.outside.network import Scoring, trained_network
from fedsim.models.outside.recipes import build_lines
from fedsim.models.stacked import StackedModel
from tests.helpers import LORA, TINY_VIT
from tests.unit.models.models_clip_folders import write_biomed, write_clip
from tests.unit.models.models_hugging_folders import write_hugging

CLASSES = ["benign", "scan", "photo"]
CPU = torch.device("cpu")
UNET = {"name": "monai:unet", "weights": "random", "options": {"channels": [4, 8], "strides": [2], "norm": "batch"}}
DENSE = {"init_features": 4, "growth_rate": 2, "block_config": [1, 1, 1, 1]}
CLIP_LORA = {"r": 2, "target": ["q", "v"]}
RESNET = {"name": "timm:test_resnet", "weights": "random"}
VIT: dict[str, Any] = {**TINY_VIT, "options": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}}
DINOV3 = {
    "name": "timm:vit_small_patch16_dinov3",
    "weights": "random",
    "options": {"init_values": 0.5, "embed_dim": 32, "depth": 2, "num_heads": 2},
}
MODELS: dict[str, dict[str, Any]] = {
    "vit, lora": {**VIT, "lora": LORA},
    "vit, rslora, olora": {**VIT, "lora": {**LORA, "use_rslora": True, "init_lora_weights": "olora"}},
    "vit, dora": {**VIT, "lora": {**LORA, "use_dora": True}},
    "vit, bf16": {**VIT, "lora": LORA, "precision": "bf16"},
    "vit, head": {**VIT, "train": "head"},
    "vit, all": {**VIT, "train": "all"},
    "linear decoder": {**VIT, "lora": LORA, "decoder": {"name": "linear"}},
    "light decoder": {
        **VIT,
        "options": {**VIT["options"], "depth": 4},
        "train": "all",
        "decoder": {"name": "upernet_light", "width": 8},
    },
    "dinov3, lora": {**DINOV3, "lora": {"r": 2, "target": ["q", "v", "fc1"]}},
    "dinov3, all": {**DINOV3, "train": "all"},
    "resnet, all": {**RESNET, "train": "all"},
    "unet": {**UNET, "train": "all"},
    "harmofl": {"name": "fedsim:harmofl_unet", "weights": "random", "options": {"num_features": 2}, "train": "all"},
    "amplitudes": {**UNET, "train": "all", "amplitude_norm": {}},
    "densenet": {"name": "monai:densenet121", "weights": "random", "options": DENSE, "train": "all"},
    "vgg": {"name": "fedsim:vgg16_slim", "weights": "random", "train": "all"},
    "clip, lora": {"name": "open_clip:local-dir:{clip}", "lora": CLIP_LORA},
    "clip, prompts": {"name": "open_clip:local-dir:{clip}", "lora": CLIP_LORA, "classifier": "text"},
    "clip, all": {"name": "open_clip:local-dir:{clip}", "train": "all"},
    "biomed, all": {"name": "open_clip:local-dir:{biomed}", "train": "all"},
    "hugging, lora": {"name": "hf:{vit}", "lora": {"r": 2, "target": ["q", "k", "v", "proj"]}},
    "hugging, all": {"name": "hf:{vit}", "train": "all"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in ("clip", "biomed", "vit")}
    write_clip(made["clip"])
    write_biomed(made["biomed"])
    write_hugging(made["vit"], "vit", image_size=32)
    return made


def trained(words: dict[str, Any], folders: dict[str, Path], slices: int | None = None) -> tuple[StackedModel, Any]:
    """A model and parameters that have all moved a little."""
    words = {**words, "name": words["name"].format(**folders)}
    model = build_models(ModelConfig.model_validate(words), 32, CLASSES, 0, CPU, slices)[0]
    stream = torch.Generator().manual_seed(4)
    params: dict[str, Tensor] = {}
    for name, value in model.initial(0).items():
        moves = value.is_floating_point() and not name.endswith("running_var")
        noise = torch.rand(value.shape, generator=stream)
        params[name] = value + 0.05 * noise if moves else value
    return model, params


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", MODELS)
def test_the_librarys_own_network_gives_the_runs_scores(name: str, folders: dict[str, Path]) -> None:
    model, params = trained(MODELS[name], folders)
    net = trained_network(model, params, CLASSES)
    assert net.state_dict().keys() == library_model(model.config, 32, 0, CLASSES).state_dict().keys()
    assert {value.dtype for value in net.state_dict().values()} <= {torch.float32, torch.int64}
    with torch.no_grad():
        expected = model.forward(params, model.prefix(images(2))[None], training=False)[0]
        found = Scoring(model, params, CLASSES, net)(images(2))
    tolerance = 0.05 if model.config.precision == "bf16" else 1e-4
    torch.testing.assert_close(found, expected.float(), rtol=tolerance, atol=tolerance)
    if model.config.train != "head":
        moved = model.forward(model.initial(0), model.prefix(images(2))[None], training=False)[0]
        assert not torch.allclose(found, moved.float(), atol=tolerance), "what was trained matters"


@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (5, 6)])
@pytest.mark.parametrize("words", [{}, {"low_freq_fraction": 0.3}, {"form": "released"}])
def test_amplitudes_without_complex_numbers(shape: tuple[int, int], words: dict[str, Any]) -> None:
    norm = AmplitudeNorm(AmplitudeNormConfig.model_validate(words), 3, *shape)
    stream = torch.Generator().manual_seed(1)
    pixels = torch.rand(4, 3, *shape, generator=stream)
    pixels[1] = 0.5  # without phases
    assert torch.equal(RealAmplitudeNorm(norm, shape[1])(pixels), pixels)
    norm(torch.rand(4, 3, *shape, generator=stream))
    norm.eval()
    found = RealAmplitudeNorm(norm, shape[1])(pixels)
    torch.testing.assert_close(found, norm(pixels), rtol=1e-5, atol=1e-5)
    assert (found - pixels).abs().max() > 0.01


def test_the_slices_of_volumes(folders: dict[str, Path]) -> None:
    model, params = trained(MODELS["vit, lora"], folders, slices=3)
    net = trained_network(model, params, CLASSES)
    with torch.no_grad():
        expected = model.forward(params, model.prefix(images(2, 3))[None], training=False)[0]
        torch.testing.assert_close(Scoring(model, params, CLASSES, net)(images(2, 3)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vit, all", "resnet, all", "unet", "densenet", "clip, all", "hugging, all"])
def test_the_lines_of_a_card_make_a_network_that_the_weights_fit(name: str, folders: dict[str, Path]) -> None:
    model, params = trained(MODELS[name], folders)
    net = trained_network(model, params, CLASSES)
    space: dict[str, Any] = {"FOLDER": str(folders["vit"])}
    exec("\n".join(build_lines(model.config, net, 32, CLASSES)), space)
    space["model"].load_state_dict(net.state_dict())


def test_merging_is_done_in_float32(folders: dict[str, Path]) -> None:
    """Of an update of 0.03 % bf16 would keep next to nothing."""
    model, params = trained(MODELS["vit, bf16"], folders)
    small = {name: value * (1e-3 if name.endswith("lora_b") else 1) for name, value in params.items()}
    merged, base = trained_network(model, small, CLASSES), library_model(model.config, 32, 0, CLASSES)
    name = "blocks.0.attn.qkv.weight"
    update = merged.state_dict()[name] - base.state_dict()[name]
    a, b = (small[f"blocks.0.attn.qkv.lora_{letter}"].double() for letter in "ab")
    expected = (b @ a).flatten(0, 1) * 2  # lora_alpha / r
    torch.testing.assert_close(update.double(), expected, rtol=1e-2, atol=1e-7)


def test_peft_says_nothing_of_transformers_old_names(folders: dict[str, Path]) -> None:
    model, params = trained(MODELS["hugging, lora"], folders)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        trained_network(model, params, CLASSES)


def test_what_no_library_has_is_refused(folders: dict[str, Path]) -> None:
    model, params = trained(MODELS["vit, head"], folders)
    with pytest.raises(UserError, match=r"model: found extra\.weight, trained beside the"):
        trained_network(model, {**params, "extra.weight": torch.zeros(1)}, CLASSES)
