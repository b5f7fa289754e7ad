"""Layers that LoRA would do nothing in, or that see several images at once, are named before anything is trained."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.any.probe import probe
from tests.unit.models.any.networks_any import build, timm


class Patches(nn.Module):
    """Images to (N, T, 8) tokens, a layer of ``inner``, and the mean of the tokens."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.inner(self.embed(images).flatten(2).mT)
        return out.mean(1)


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.fc(self.attn(tokens, tokens, tokens)[0])
        return out


class Unheard(nn.Module):
    """A layer whose output goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lost = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.fc(tokens) + 0 * self.lost(tokens)
        return out


class TokensFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.fc(tokens.transpose(0, 1))
        return out.transpose(0, 1)


class Table(nn.Module):
    """A layer on a table of positions, as Swin v2 has it."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.table = nn.Parameter(torch.randn(rows, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.fc(self.table).mean(0)


class TrainingOnly(nn.Module):
    """A layer that evaluation passes by, and one that training passes by."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = (self.early if self.training else self.late)(tokens)
        return out


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.fc(torch.tanh(self.fc(tokens)))
        return out


class Tied(nn.Module):
    """Two layers with one weight, of the same parameter or of two on the same memory."""

    def __init__(self, *, same_parameter: bool) -> None:
        super().__init__()
        self.early, self.late = nn.Linear(8, 8), nn.Linear(8, 8)
        self.late.weight = self.early.weight if same_parameter else nn.Parameter(self.early.weight.data)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.late(torch.tanh(self.early(tokens)))
        return out


class TwoNames(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.last = self.fc

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.fc(tokens)
        return out


def tuned(net: nn.Module, target: str, monkeypatch: pytest.MonkeyPatch, *more: str, **lora: Any) -> Any:
    module = ModuleType("net_of_probe")
    vars(module)["make"] = lambda *_: net
    monkeypatch.setitem(sys.modules, "net_of_probe", module)
    words = {"name": "net_of_probe.make", "lora": {"r": 2, "target": [target, *more], **lora}}
    return build(ModelConfig.model_validate(words), 8)


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)


@pytest.mark.parametrize(
    ("inner", "target", "words"),
    [
        (Attends, "out_proj", r"out_proj; expected all-linear, fc \(linear layers\)"),
        *(
            (encoder_layer, name, rf"inner\.{name} of .*, which is not called in eval mode")
            for name in ("linear1", "linear2")
        ),
        (Unheard, "lost", r"inner\.lost of .*, on which the output does not depend in eval mode"),
        (TokensFirst, "fc", r"inner\.fc, before which clients' images are mixed"),
        (lambda: Table(3), "fc", r"inner\.fc of .*, whose input of shape \(3, 8\) does not have 2 images first"),
        (lambda: Table(4), "fc", r"inner\.fc, before which clients' images are mixed|an output, before which"),
        (TrainingOnly, "early", r"inner\.early of .*, which is not called in eval mode"),
        (TrainingOnly, "late", r"inner\.late of .*, which is not called in train mode"),
        (lambda: nn.BatchNorm1d(4, track_running_stats=False), "all-linear", r"all-linear; expected all-conv, embed"),
        (lambda: nn.BatchNorm1d(4, track_running_stats=False), "embed", r"an output, before which clients' images"),
    ],
)
def test_what_does_not_do_what_lora_should_is_named(
    inner: Any, target: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        tuned(Patches(inner()), target, monkeypatch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("inner", "target"), [(Attends, "fc"), (Unheard, "fc"), (Unheard, "embed")])
def test_the_other_layers_of_such_networks_are_taken(inner: Any, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(tuned(Patches(inner()), target, monkeypatch).lora_layers) == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("eva02_tiny_patch14_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}),
        ("vit_small_patch16_dinov3_qkvb", {"embed_dim": 32, "depth": 1, "num_heads": 2}),
        ("beitv2_base_patch16_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}),
        (
            "swinv2_tiny_window8_256",
            {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2},
        ),
    ],
)
def test_attention_that_multiplies_by_the_weight_itself(name: str, options: dict[str, Any], tmp_path: Any) -> None:
    size = 28 if "14" in name else 32
    with pytest.raises(UserError, match=r"attn\.qkv of timm:.*, which is not called in eval mode: its weight"):
        build(timm(name, size, (("q", "v"),), **options).config(tmp_path), size)
    if name.startswith("swinv2"):  # its fresh blocks count for nothing: the norms behind them are zero at first
        with pytest.raises(UserError, match=r"attn\.proj of timm:.*, on which the output does not depend in eval mode"):
            build(timm(name, size, (("proj",),), **options).config(tmp_path), size)
    else:
        assert build(timm(name, size, (("proj",),), **options).config(tmp_path), size).lora_layers


@pytest.mark.parametrize("same_parameter", [True, False])
@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            "all-linear",
            r"inner\.early, which shares its weight with inner\.late; expected layers with weights of their",
        ),
        ("late", r"inner\.late, which shares its weight with inner\.early; expected layers with weights of their"),
    ],
)
def test_a_weight_that_two_layers_share(
    target: str, words: str, same_parameter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft would merge into it the updates of both, or that of one for both."""
    with pytest.raises(UserError, match=rf"model\.lora\.target: found {words}") as caught:
        tuned(Patches(Tied(same_parameter=same_parameter)), target, monkeypatch)
    assert "\n" not in str(caught.value)
    assert tuned(Patches(Tied(same_parameter=same_parameter)), "embed", monkeypatch).lora_layers


def test_a_layer_under_two_names_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (layer,) = tuned(Patches(TwoNames()), "fc", monkeypatch).lora_layers
    assert layer.path == "net.inner.fc"


def test_the_network_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model = tuned(Patches(inner), "0", monkeypatch)
    norm = model.net.net.inner[1]
    assert not any(part.training for part in model.net.modules())
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(4))
    assert model.lora_layers[0].module.forward.__func__ is type(model.lora_layers[0].module).forward


def test_a_layer_that_is_passed_twice_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tuned(Patches(Twice()), "fc", monkeypatch)
    assert model.hides_examples() == "net.inner.fc"
    again = probe(model.net, model.lora_layers, model.config, 8, torch.device("cpu"))
    assert again == "net.inner.fc"
    assert tuned(Patches(Attends()), "fc", monkeypatch).hides_examples() is None
    assert tuned(Patches(Attends()), "embed", monkeypatch).hides_examples() == "net.embed"


def test_numbered_layers_and_words_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"model\.lora\.layers: found \[0\] with net_of_probe\.make"):
        tuned(Patches(Attends()), "fc", monkeypatch, layers=[0])
    with pytest.raises(UserError, match=r"found nothing; expected all-linear, fc .* or all-conv, embed \(conv"):
        tuned(Patches(Attends()), "nothing", monkeypatch)
    with pytest.raises(UserError, match=r"found fc; expected all-conv, embed \(convolutions\)"):
        tuned(Patches(Attends()), "all-linear", monkeypatch, "fc")
