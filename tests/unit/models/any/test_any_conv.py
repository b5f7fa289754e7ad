"""LoRA on convolutions is peft's, for every kind that peft adapts; the others are refused by name."""

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from fedsim.config.words import LoraConfig
from fedsim.errors import UserError
from fedsim.models.any.conv import LoRAConv2d, check_conv
from tests.helpers import furthest

K, B, R = 3, 2, 4
KINDS: dict[str, dict[str, Any]] = {
    "3 x 3": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": 3, "stride": 2, "padding": (0, 2)},
    "same": {"kernel_size": (1, 4), "padding": "same"},
    "patches": {"kernel_size": 4, "stride": 4, "bias": False},
    "1 x 1": {"kernel_size": 1},
    "1 x 1 with stride": {"kernel_size": 1, "stride": 2},
    "1 x 1 with padding": {"kernel_size": 1, "padding": 1},
    "groups": {"kernel_size": 3, "groups": 2},
    "depthwise": {"kernel_size": 3, "groups": 4, "padding": 1},
}


def layer_of(kind: str) -> LoRAConv2d:
    return LoRAConv2d(nn.Conv2d(4, 8, **KINDS[kind]).requires_grad_(False), 0.5)


def factors(layer: LoRAConv2d, clients: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    groups, rank = len(layer.slices), R // len(layer.slices)
    a = torch.randn(clients, groups, rank, layer.input_width, generator=stream)
    return a, torch.randn(clients, groups, layer.slice_width, rank, generator=stream)


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_client_has_pefts_layer(kind: str) -> None:
    layer = layer_of(kind)
    a, b = (factor.requires_grad_() for factor in factors(layer, K))
    x = torch.randn(K * B, 4, 8, 8, requires_grad=True)
    layer.lora_a, layer.lora_b = a, b
    out = layer(x)
    weights = torch.randn(out.shape)
    found = torch.autograd.grad((out * weights).sum(), (x, a, b))
    for client in range(K):
        config = peft.LoraConfig(r=R, lora_alpha=0.5 * R, target_modules=["0"])
        theirs: Any = peft.get_peft_model(nn.Sequential(layer.base), config).base_model.model[0]
        pair = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
        with torch.no_grad():
            for own, kernel in zip(pair, layer.kernels(a[client], b[client]), strict=True):
                own.copy_(kernel)
        rows = slice(client * B, client * B + B)
        images = x[rows].detach().requires_grad_()
        alone = theirs(images)
        torch.testing.assert_close(out[rows], alone, rtol=1e-5, atol=1e-5)
        expected = torch.autograd.grad((alone * weights[rows]).sum(), (images, *pair))
        mine = found[0][rows], *layer.kernels(found[1][client], found[2][client])
        assert furthest(dict(enumerate(mine)), dict(enumerate(expected)))[0] < 1e-5  # type: ignore[arg-type]  # names


@pytest.mark.parametrize("shared", ["a", "b", "both"])
@pytest.mark.parametrize("kind", ["3 x 3", "1 x 1", "groups"])
def test_factors_that_clients_share(kind: str, shared: str) -> None:
    layer, x = layer_of(kind), torch.randn(K * B, 4, 8, 8)
    a, b = factors(layer, K)
    a = a[:1].expand_as(a) if shared != "b" else a
    b = b[:1].expand_as(b) if shared != "a" else b
    layer.lora_a, layer.lora_b = a, b
    expected = layer(x)
    layer.lora_a, layer.lora_b = a if shared == "b" else a[0], b if shared == "a" else b[0]
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["3 x 3", "stride", "1 x 1"])
def test_a_shift_is_a_change_of_the_weight(kind: str) -> None:
    layer, x = layer_of(kind), torch.randn(B, 4, 8, 8)
    layer.lora_a, layer.lora_b = (factor[0] for factor in factors(layer, 1))
    shift = torch.randn(1, layer.slice_width, layer.input_width)
    with_shift = LoRAConv2d(nn.Conv2d(4, 8, **KINDS[kind]).requires_grad_(False), 0.5)
    with_shift.base.weight.copy_(layer.base.weight + 0.5 * shift[0].view_as(layer.base.weight))
    with_shift.base.bias.copy_(layer.base.bias)  # type: ignore[union-attr,arg-type]  # these kinds have one
    with_shift.lora_a, with_shift.lora_b = layer.lora_a, layer.lora_b
    layer.shift_by(shift)
    torch.testing.assert_close(layer(x), with_shift(x), rtol=1e-5, atol=1e-5)
    layer.shift_by(None)
    assert (layer(x) - with_shift(x)).abs().max() > 0.01


def test_every_client_has_its_own_scale() -> None:
    layer, x = layer_of("3 x 3"), torch.randn(K * B, 4, 8, 8)
    layer.lora_a, layer.lora_b = a, b = factors(layer, K)
    layer.own_scaling = torch.tensor([0.1, 1.0, 3.0])
    found = layer(x)
    layer.own_scaling = None
    layer.lora_b = b * torch.tensor([0.2, 2.0, 6.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)
    assert a is layer.lora_a


@pytest.mark.parametrize(
    ("words", "lora", "message"),
    [
        ({"groups": 4}, {"r": 6}, r"model\.lora\.r: found 6 for conv, .* of 4 groups; expected a multiple of 4"),
        ({"groups": 2}, {"ranks": [2, 4]}, r"model\.lora\.ranks: found ranks for conv"),
        ({"dilation": 2}, {}, r"model\.lora\.target: found conv, a convolution with dilation \(2, 2\)"),
        ({"padding_mode": "reflect", "padding": 1}, {}, r"a convolution with padding_mode reflect"),
        ({}, {"use_dora": True}, r"model\.lora\.use_dora: found true with the convolution conv"),
        ({}, {"init_lora_weights": "pissa"}, r"found pissa with the convolution conv; expected true or gaussian"),
    ],
)
def test_what_peft_does_not_adapt_is_refused(words: dict[str, Any], lora: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_conv(nn.Conv2d(4, 8, 3, **words), "conv", LoraConfig.model_validate(lora))
