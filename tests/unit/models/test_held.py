"""The model that clients hold: equal to a plainly cut copy, and of one memory with the full model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.build import build_models
from fedsim.models.specs import PROXIES
from fedsim.models.stacked import StackedModel
from fedsim.models.submodel.feed_forward import find_feed_forward
from fedsim.models.submodel.model import HeldModel, ProxyLinear
from tests.unit.models.models_cut import (
    CLOSE,
    CPU,
    KINDS,
    RANK,
    SIZES,
    full_model,
    inputs_of,
    keep,
    plainly_cut,
    words_of,
)


def cut_in_place(config: ModelConfig, size: int, neurons: Mapping[int, Tensor]) -> StackedModel:
    """A whole StackedModel of which then these neurons alone are left."""
    model = full_model(config, size)
    for number, kept in neurons.items():
        keep(model.blocks[number], kept)
    return model


def random_factors(params: Mapping[str, Tensor], num_clients: int | None = None) -> dict[str, Tensor]:
    """LoRA factors that do something, for each client its own."""
    generator = torch.Generator().manual_seed(7)
    return {
        name: 0.3 * torch.randn((num_clients, *v.shape) if num_clients else v.shape, generator=generator)
        if name.endswith(("lora_a", "lora_b"))
        else v
        for name, v in params.items()
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_plainly_cut_copy(kind: str, precision: str, tmp_path: Path) -> None:
    config = ModelConfig.model_validate(words_of(kind, tmp_path, precision=precision))
    _, neurons, tensors = plainly_cut(config, SIZES[kind], (1,), RANK)
    full = full_model(config, SIZES[kind])
    held, plain = HeldModel(full, range(3), tensors), cut_in_place(config, SIZES[kind], neurons)
    params = random_factors(held.initial(0), num_clients=2)
    leaves = [value.requires_grad_() for name, value in params.items() if name.endswith("lora_b")]
    fixed = held.prefix(inputs_of(kind, 6)).unflatten(0, (2, 3))
    found, expected = (model.features(params, fixed, training=True) for model in (held, plain))
    torch.testing.assert_close(found, expected, **(CLOSE if precision == "fp32" else {"rtol": 0.02, "atol": 0.02}))
    assert not torch.allclose(found, full.features(params, fixed, training=True), atol=0.05)
    grads, theirs = (torch.autograd.grad(out.square().sum(), leaves) for out in (found, expected))
    for one, other in zip(grads, theirs, strict=True):
        size = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=size * (1e-5 if precision == "fp32" else 0.03))
    assert any(grad.abs().max() > 0 for grad in grads)


@pytest.mark.parametrize("kind", KINDS)
def test_states_have_the_gradients_of_a_plain_model(kind: str, tmp_path: Path) -> None:
    config = ModelConfig.model_validate(words_of(kind, tmp_path))
    tower, _, tensors = plainly_cut(config, SIZES[kind], (1,), RANK)
    held = HeldModel(full_model(config, SIZES[kind]), range(3), tensors)
    params = held.initial(0)  # LoRA is neutral at first
    bound = {name: value.requires_grad_() for name, value in params.items() if name.startswith(PROXIES)}
    inputs = inputs_of(kind, 4)
    states = held.states(params, held.prefix(inputs))
    pixels = inputs if kind in ("bert", "roberta") else (inputs - held._mean) / held._std
    expected = tower.states(tower.stem(pixels))
    trained = {
        f"{PROXIES}{number}.{path}" for number in (0, 2) for path in find_feed_forward(tower.blocks[0], "").trained()
    }
    assert bound.keys() == trained
    assert len(bound) == 2 * (6 if kind in ("bert", "roberta") else 4)
    leaves = [tower.get_parameter(name.removeprefix("submodel.")).requires_grad_() for name in bound]
    again = tower.states(tower.stem(pixels))
    for one, other in zip(states, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    grads, theirs = (
        torch.autograd.grad(sum(state.square().mean() for state in found), targets)
        for found, targets in ((states, list(bound.values())), (again, leaves))
    )
    for name, one, other in zip(bound, grads, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    frozen = held.states({name: value.detach() for name, value in params.items()}, held.prefix(inputs))
    torch.testing.assert_close(frozen[-1], states[-1], **CLOSE)


@pytest.mark.parametrize("kind", ["timm", "bert"])
def test_it_has_no_memory_of_its_own(kind: str, tmp_path: Path) -> None:
    config = ModelConfig.model_validate(words_of(kind, tmp_path))
    _, _, tensors = plainly_cut(config, SIZES[kind], (1,), RANK)
    full = full_model(config, SIZES[kind])
    before = dict(full.net.named_modules())
    held = HeldModel(full, range(3), tensors)
    whole = {id(parameter) for parameter in full.net.parameters()}
    own = {name: id(parameter) for name, parameter in held.net.named_parameters()}
    assert set(own.values()) < whole
    cut = find_feed_forward(full.blocks[0], "").trained()
    assert not [name for name in own if name.startswith(("blocks.0.", "blocks.2.")) and name.split(".", 2)[2] in cut]
    assert dict(full.net.named_modules()) == before, "the full model stays what it was"
    assert held.blocks[1] is full.blocks[1]
    assert [type(block) for block in held.blocks] == [type(block) for block in full.blocks]


def test_what_is_bound_may_change() -> None:
    layer, plain = ProxyLinear(torch.float32), nn.Linear(5, 3).requires_grad_(False)
    x = torch.randn(4, 5)
    weight, bias = plain.weight.data.clone(), plain.bias.data.clone()
    for _ in range(2):
        layer.bind(weight, bias)
        torch.testing.assert_close(layer(x), plain(x))
        weight += 1
        plain.weight += 1
    layer.bind(weight, bias)
    product = layer._product
    layer(x)
    assert layer._product is not product
    layer.bind(weight, bias)
    product = layer._product
    layer(x)
    assert layer._product is product, "what stays the same is laid out once"
    for trained in (weight, bias):
        layer.bind(weight, bias)
        trained.requires_grad_()
        (grad,) = torch.autograd.grad(layer(x).sum(), trained)
        assert grad.abs().sum() > 0
        trained.requires_grad_(False)
    layer.bind(weight, None)
    torch.testing.assert_close(layer(x), x @ weight.T)


def test_dropped_layers(tmp_path: Path) -> None:
    """Offsite tuning: clients have the first and the last layer and one between, the server all three."""
    words = words_of("bert", tmp_path, submodel={"layers": [0, 2]})
    words["lora"] |= {"layers": [2], "target": ["q", "proj"]}
    full, held = build_models(ModelConfig.model_validate(words), 16, ["a", "b"], 0, CPU)
    assert full.num_layers == 3
    assert held.num_layers == 2
    assert full.specs == held.specs
    adapted = {name.rpartition(".")[0] for name in full.specs if name.endswith("lora_a")}
    assert adapted == {"blocks.2.attention.self.qkv", "blocks.2.attention.output.dense"}
    params = random_factors(held.initial(0))
    fixed = held.prefix(inputs_of("bert", 4))[None]
    whole = full.features(params, fixed, training=False)
    tower = full.tower
    tokens, mask = tower.embed(fixed[0])
    for number in (0, 2):
        tokens = tower.blocks[number](tokens, mask)
    torch.testing.assert_close(held.features(params, fixed, training=False)[0], tower.rest.pooler(tokens), **CLOSE)
    assert not torch.allclose(whole[0], tower.rest.pooler(tokens), atol=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"submodel": {"layers": [0, 3]}}, r"model\.submodel\.layers: found 3; expected layers from 0 to 2"),
        ({"lora": {"layers": [1, 7]}}, r"model\.lora\.layers: found 7; expected layers from 0 to 2"),
    ],
)
def test_layers_that_the_model_has_not(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = ModelConfig.model_validate(words_of("timm", tmp_path, **changes))
    with pytest.raises(UserError, match=message):
        build_models(config, 14, ["a", "b"], 0, CPU)


def test_adapters_and_cuts_do_not_meet(tmp_path: Path) -> None:
    config = ModelConfig.model_validate(words_of("timm", tmp_path, lora={"target": ["q", "fc1"]}))
    _, _, tensors = plainly_cut(config, 14, (1,), RANK)
    with pytest.raises(UserError, match=r"model\.lora\.target: found a target in blocks\.0\.mlp\.fc1, which .* cuts"):
        HeldModel(full_model(config, 14), range(3), tensors)
    whole_layer = ModelConfig.model_validate(words_of("timm", tmp_path, lora={"target": ["q", "fc1"], "layers": [1]}))
    held = HeldModel(full_model(whole_layer, 14), range(3), tensors)
    assert "blocks.1.mlp.fc1.lora_a" in held.specs
