"""A network that is named by the import path of a function: found, called, and looked at."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.catalogue.models import MODELS, OWN_MODEL, model_row
from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.build import stack
from fedsim.models.encoders import Encoder, library_model, load_encoder

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(autouse=True)
def _path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_net.py").write_text("number = 3\ndef none():\n    pass\n")
    (tmp_path / "own_exit.py").write_text("raise SystemExit(4)\n")
    for name in ("own_net", "own_exit"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def features(width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, width))


def load(returned: Any, monkeypatch: pytest.MonkeyPatch, seed: int = 0, **words: Any) -> Encoder:
    import own_net

    is_made = isinstance(returned, nn.Module | Encoder) or not callable(returned)
    make: Callable[..., Any] = (lambda _, __: returned) if is_made else returned
    monkeypatch.setattr(own_net, "encoder", make, raising=False)
    return load_encoder(ModelConfig.model_validate({"name": "own_net.encoder", **words}), 8, ("a", "b"), seed)


def test_a_module_is_drawn_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    make = lambda config, _: features(config.options["width"])  # noqa: E731  # a function like a user's
    one, same, other = (load(make, monkeypatch, seed, options={"width": 4}) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert (one.width, one.image_size, one.per_pixel, one.tower) == (4, 8, False, None)
    weights = [encoder.net.state_dict()["1.weight"] for encoder in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("train", ["all", "head"])
def test_it_trains_whole_or_under_a_head(train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(features(), monkeypatch, train=train)
    config = ModelConfig.model_validate({"name": "own_net.encoder", "train": train})
    specs = stack(config, encoder, 2, torch.device("cpu")).specs
    assert {"head.weight", "head.bias"} <= specs.keys()
    assert ("net.1.weight" in specs) == (train == "all")


def test_scores_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(nn.Conv2d(3, 2, 1), monkeypatch).per_pixel
    with pytest.raises(UserError, match=r"outputs of shape \(2, 4, 8, 8\) for two inputs; expected .*\(N, 2, 8, 8\)"):
        load(nn.Conv2d(3, 4, 1), monkeypatch)
    with pytest.raises(UserError, match=r"model.train: found head with own_net.encoder, .*; expected all or lora"):
        load(nn.Conv2d(3, 2, 1), monkeypatch, train="head")


def test_an_encoder_brings_its_normalisation_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    config = ModelConfig.model_validate({"name": "timm:vit_tiny_patch16_224", "weights": "random", "options": words})

    def make(_: ModelConfig, image_size: int) -> Encoder:
        return load_encoder(config, image_size, ("a", "b"), 0)

    encoder = load(make, monkeypatch, lora={})
    assert encoder.tower is not None
    assert encoder.std == load_encoder(config, 8, ("a", "b"), 0).std
    assert load(features(), monkeypatch, lora={}).adaptable.source_path("net.0") == "0"


class Two(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images


class Raises(nn.Module):
    def forward(self, _: Tensor) -> Tensor:
        raise ValueError("16 pixels or more")


class Const(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(1))
        self.result = value

    def forward(self, _: Tensor) -> Tensor:
        return self.result


def encoder_with(**changes: Any) -> Encoder:
    words: dict[str, Any] = {"net": features(), "width": 5, "mean": HALF, "std": HALF, "image_size": 8}
    return Encoder(**(words | changes))


def unfinite() -> nn.Module:
    net = features()
    with torch.no_grad():
        net[1].weight[0, 0] = torch.nan  # type: ignore[index]
    return net


REFUSED: list[tuple[Any, str]] = [
    (None, r"model.name own_net.encoder: found a function that returns NoneType; expected a torch module or a fedsim"),
    ([features()], r"a function that returns list"),
    (nn.Sequential(Two(), nn.Linear(3, 3)), r"model.options of own_net.encoder, data.image_size 8: found TypeError"),
    (nn.ModuleList([nn.Linear(2, 2)]), r"NotImplementedError"),
    (nn.Sequential(nn.Linear(1, 1), Raises()), r"found RuntimeError|found ValueError: 16 pixels"),
    (Const(torch.zeros(2, 3, 4)), r"outputs of shape \(2, 3, 4\) for two inputs"),
    (Const(torch.zeros(1, 3)), r"outputs of shape \(1, 3\) for two inputs"),
    (Const(torch.zeros(2, 0)), r"outputs of shape \(2, 0\) for two inputs"),
    (Const(torch.zeros(2, 3, dtype=torch.float64)), r"outputs of torch.float64, or nan or inf"),
    (Const(torch.full((2, 3), torch.inf)), r"outputs of torch.float32, or nan or inf"),
    (features().double(), r"tensor 1.weight of torch.float64; expected float32"),
    (unfinite(), r"model.name own_net.encoder: found tensor 1.weight with nan"),
    (nn.Flatten(), r"model.train: found all with own_net.encoder, which has no parameters; expected head"),
    (nn.Sequential(features(), nn.Dropout(0.1)), r"dropout of 0.1 at 1; expected none"),
    (encoder_with(net=3), r"an Encoder around int"),
    (encoder_with(width=6), r"an Encoder with width 6 and per_pixel False; expected 5 and False"),
    (encoder_with(per_pixel=True), r"with width 5 and per_pixel True; expected 5 and False"),
    (encoder_with(image_size=16), r"an Encoder with image_size 16; expected 8"),
    (encoder_with(mean=0.5), r"an Encoder with mean 0.5; expected three floats"),
    (encoder_with(std=(0.0, 1.0, 1.0)), r"an Encoder with std \(0.0, 1.0, 1.0\); expected three floats"),
    (encoder_with(tokenizer=1), r"an Encoder with a tokenizer or a text classifier; expected one for images alone"),
]


@pytest.mark.parametrize(("returned", "message"), REFUSED)
def test_what_it_returns_is_looked_at(returned: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=message):
        load(returned, monkeypatch)


def test_dropout_is_idle_under_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(nn.Sequential(features(), nn.Dropout(0.1)), monkeypatch, train="head").width == 5


def test_a_function_that_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"'own_net.encoder', which ends the program \(code 3\)"):
        load(lambda _, __: sys.exit(3), monkeypatch)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_such.net",
            r"model.name: found 'no_such.net' \(No module named 'no_such'\); expected a name that launch.py",
        ),
        ("own_net.absent", r"'own_net.absent' \(no absent in own_net\); expected .*, or the import path of a function"),
        ("own_net.number", r"'own_net.number', which is no function; expected a function that returns a network"),
        ("own_net.none", r"'own_net.none', which cannot be called so .*; expected a function of \(ModelConfig, int\)"),
        ("own_exit.net", r"'own_exit.net', whose module ends the program \(code 4\)"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_encoder(ModelConfig.model_validate({"name": name}), 8, ("a", "b"), 0)


@pytest.mark.parametrize("weights", ["random", "nowhere.safetensors"])
def test_weights_are_the_functions_own(weights: str) -> None:
    with pytest.raises(ValueError, match="expected null: the function decides"):
        ModelConfig.model_validate({"name": "own_net.encoder", "weights": weights})


def test_a_dot_behind_a_prefix_is_no_import_path() -> None:
    assert {name: model_row(name) for name in MODELS} == MODELS
    for name in (
        "timm:vit_base_patch16_224.augreg_in21k",
        "open_clip:hf-hub:a/b.c",
        "hf:../bert.v2",
        "open_clip:local-dir:a.b",
    ):
        row = model_row(name)
        assert row is not None
        assert row is not OWN_MODEL
        assert name.startswith(row.prefix or "?")
    for name in ("timm:", "timm: a", "open_clip:hf-hub:", "open_clip::a", "vit", "monai:unet2"):
        assert model_row(name) is None
    with pytest.raises(UserError, match=r"own_net\.encoder"):
        library_model(ModelConfig.model_validate({"name": "own_net.encoder"}), 8, 0)
