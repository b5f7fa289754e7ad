"""A network whose output for an image depends on the others of its batch is refused in one line, however it trains."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.any.apart import check_apart
from fedsim.models.build import build_models
from fedsim.models.encoders import load_encoder
from fedsim.models.stacked import StackedModel
from fedsim.models.tower import Encoder
from tests.unit.models.any.networks_any import CLASSES, write_vision

HALF = (0.5, 0.5, 0.5)
TINY_VIT = {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
DINOV3 = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MIXES = r"model\.name {}: found a network whose output for an image depends on the other images of its batch in {} mode"


class Centred(nn.Module):
    """Features (N, W) less their mean over the batch."""

    def forward(self, features: Tensor) -> Tensor:
        return features - features.mean(0)


class CentredInTraining(Centred):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) if self.training else features


class Numbered(nn.Module):
    """Features divided by the number of images."""

    def forward(self, features: Tensor) -> Tensor:
        return features / len(features)


class Summed(nn.Module):
    """Features of the images so far: the first sees no other."""

    def forward(self, features: Tensor) -> Tensor:
        return features.cumsum(0)


class SumInBf16(nn.Module):
    """Features rounded otherwise in a batch of one, as kernels for bf16 do."""

    def forward(self, features: Tensor) -> Tensor:
        whole = features.bfloat16().float()
        return whole if len(features) > 1 else whole * (1 + 2**-8)


class Squeezed(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.squeeze()


class Noisy(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features + torch.rand(features.shape)


class Follows(nn.Module):
    """Keeps a mean of what it sees, whatever its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, features: Tensor) -> Tensor:
        self.mean: Tensor
        self.mean = 0.9 * self.mean + 0.1 * features.detach().mean(0)
        return features


def net_with(*last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), *last[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), *last[-1:])


def model_of(made: Any, monkeypatch: pytest.MonkeyPatch, **words: Any) -> StackedModel:
    module, slices = ModuleType("net_of_apart"), words.pop("slices", None)
    vars(module)["make"] = lambda *_: made
    monkeypatch.setitem(sys.modules, "net_of_apart", module)
    config = ModelConfig.model_validate({"name": "net_of_apart.make", **words})
    return build_models(config, 8, CLASSES, 4, torch.device("cpu"), slices)[0]


@pytest.mark.parametrize("train", ["all", "head"])
@pytest.mark.parametrize("last", [Centred, Numbered, Summed])
def test_an_own_network_that_mixes(last: type[nn.Module], train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=MIXES.format(r"net_of_apart\.make", "eval")) as caught:
        model_of(net_with(last()), monkeypatch, train=train)
    assert "\n" not in str(caught.value)


def test_in_train_mode_it_must_not_mix_where_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=MIXES.format(r"net_of_apart\.make", "train")):
        model_of(net_with(CentredInTraining()), monkeypatch, train="all")
    assert not model_of(net_with(CentredInTraining()), monkeypatch, train="head").mixes_images(training=True)


def test_batch_norm_is_known_to_mix_where_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, without = nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)
    model = model_of(net_with(kept, nn.ReLU()), monkeypatch, train="all")
    assert model.mixes_images(training=True)
    assert not model.mixes_images(training=False)
    assert model_of(net_with(without, nn.ReLU()), monkeypatch, train="all").mixes_images(training=False)
    model_of(net_with(kept, nn.ReLU()), monkeypatch, train="head")
    with pytest.raises(UserError, match=MIXES.format(r"net_of_apart\.make", "eval")):
        model_of(net_with(without, nn.ReLU()), monkeypatch, train="head")
    flat = nn.BatchNorm1d(4, track_running_stats=False)
    assert model_of(net_with(flat), monkeypatch, train="all").mixes_images(training=False)
    with pytest.raises(UserError, match=r"Expected more than 1 value per channel .*; expected a network through"):
        model_of(net_with(flat), monkeypatch, train="head")


def test_a_network_of_the_catalogue() -> None:
    options = {"init_features": 4, "growth_rate": 2, "block_config": [1, 1], "form": "released"}
    words = {"name": "fedsim:harmofl_densenet121", "weights": "random", "options": options}
    whole = ModelConfig.model_validate({**words, "train": "all"})
    assert build_models(whole, 32, CLASSES, 4, torch.device("cpu"))[0].mixes_images(training=False)
    with pytest.raises(UserError, match=MIXES.format("fedsim:harmofl_densenet121", "eval")):
        build_models(whole.model_copy(update={"train": "head"}), 32, CLASSES, 4, torch.device("cpu"))


def test_a_network_for_whole_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = (nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    words: dict[str, Any] = {"width": 4, "mean": HALF, "std": HALF, "image_size": 8, "whole_volumes": True}
    with pytest.raises(UserError, match=MIXES.format(r"net_of_apart\.make", "eval")):
        model_of(Encoder(nn.Sequential(*layers, Centred()), **words), monkeypatch, train="all", slices=5)
    model_of(Encoder(nn.Sequential(*layers), **words), monkeypatch, train="all", slices=5)


def test_a_transformer_that_somebody_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig.model_validate({"name": "timm:vit_tiny_patch16_224", "weights": "random", "options": TINY_VIT})
    model_of(load_encoder(config, 8, CLASSES, 0), monkeypatch, lora={"r": 2})
    encoder = load_encoder(config, 8, CLASSES, 0)
    assert encoder.tower is not None
    encoder.tower.blocks.append(Centred())
    encoder.tower.blocks.append(nn.Identity())
    with pytest.raises(UserError, match=MIXES.format(r"net_of_apart\.make", "eval")):
        model_of(encoder, monkeypatch, lora={"r": 2})


def test_rounding_chance_and_shapes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model_of(net_with(SumInBf16()), monkeypatch, train="all")
    with pytest.raises(UserError, match=r"output is another each time in eval mode; expected none: a run draws"):
        model_of(net_with(Noisy()), monkeypatch, train="head")
    with pytest.raises(UserError, match=r"outputs of shape \(4,\) for a batch of 1; expected a tensor, images first"):
        model_of(net_with(Squeezed()), monkeypatch, train="all")


@pytest.mark.parametrize("net", [net_with(Follows()), net_with(nn.BatchNorm2d(4), nn.Dropout(0.5), Follows())], ids=len)
def test_the_trial_leaves_no_trace(net: nn.Module) -> None:
    before, state = torch.get_rng_state(), {name: value.clone() for name, value in net.state_dict().items()}
    config = ModelConfig.model_validate({"name": "net_of_apart.make", "train": "all"})
    check_apart(Encoder(net.eval(), 4, HALF, HALF, 8), config)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(part.training for part in net.modules())
    net(torch.rand(2, 3, 8, 8))
    assert not all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_a_dinov3_without_registers(tmp_path: Path) -> None:
    write_vision(tmp_path, "DINOv3ViT", **DINOV3, num_register_tokens=0, intermediate_size=48)
    for words in ({"train": "head"}, {"train": "all"}, {"lora": {"r": 2, "target": ["q", "v"]}}):
        config = ModelConfig.model_validate({"name": f"hf:{tmp_path}", **words})
        model, _ = build_models(config, 16, CLASSES, 4, torch.device("cpu"))
        params = model.initial(0)
        fixed = model.prefix(torch.rand(2, 3, 16, 16))[None]
        assert torch.isfinite(model.forward(params, fixed, training=False)).all()
