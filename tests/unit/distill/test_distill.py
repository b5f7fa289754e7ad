"""The distiller: its gradient against a plain one, what it may move, its order, its end and its errors."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.comm.group import open_group
from fedsim.config.distill import DistillSettings
from fedsim.config.words import ModelConfig
from fedsim.distill.distiller import Distiller, Pair, learning_rate
from fedsim.errors import UserError
from fedsim.inputs.images import ImageSource
from fedsim.kernels.frozen import plain
from fedsim.models.build import build_models
from fedsim.models.specs import PROXIES
from fedsim.models.submodel.model import HeldModel
from tests.helpers import IMAGE_SIZE, LORA, TINY_VIT, make_dataset, same_bits
from tests.submodels import tiny_submodel

SEED = 3
PLAIN_SGD = {"optimizer": "sgd", "lr": 1.0, "warmup": 0.0, "clip_norm": None, "epochs": 1}
Models = tuple[Pair, ImageSource]


def make_models(precision: str = "fp32") -> Models:
    """The tiny ViT and its sub-model, and images of which 24 are for training."""
    words = {**TINY_VIT, "lora": LORA, "submodel": {"folder": tiny_submodel(48)}, "precision": precision}
    full, held = build_models(ModelConfig.model_validate(words), IMAGE_SIZE, ["x"], 0, torch.device("cpu"))
    assert isinstance(held, HeldModel)
    source = ImageSource(make_dataset([24])[0], full, ())
    return Pair(full, held, full.initial(0), held.initial(0)), source


@pytest.fixture(scope="module")
def models() -> Models:
    return make_models()


def proxies(pair: Pair) -> dict[str, Tensor]:
    return {name: value for name, value in pair.held_params.items() if name.startswith(PROXIES)}


def everything(pair: Pair) -> dict[str, Tensor]:
    return {name: torch.ones_like(value, dtype=torch.bool) for name, value in proxies(pair).items()}


def make(models: Models, chosen: Mapping[str, Tensor] | None = None, **words: Any) -> Distiller:
    pair, source = models
    settings = DistillSettings.model_validate({"batch_size": 10, "micro_batch": 4, "epochs": 2, "lr": 0.01, **words})
    wanted = everything(pair) if chosen is None else chosen
    return Distiller(pair, wanted, source, np.arange(24), settings, open_group(), seed=SEED, purpose="test")


def plain_loss(models: Models, tensors: Mapping[str, Tensor], places: np.ndarray, alpha: float) -> Tensor:
    """The loss of one micro-batch, written down once more."""
    pair, source = models
    fixed = source.evaluation_batch(places)[0]
    theirs = pair.full.states(pair.full_params, fixed)
    ours = pair.held.states({**pair.held_params, **tensors}, fixed)
    total = torch.zeros(())
    for layer, block in enumerate(pair.full.blocks):
        inner, outer = (tensors[f"{PROXIES}{layer}.mlp.{name}.weight"] for name in ("fc1", "fc2"))
        whole = plain(block.mlp.fc2.weight) @ plain(block.mlp.fc1.weight)  # type: ignore[union-attr]  # a timm block
        total = total + ((ours[layer] - theirs[layer]) ** 2).sum() / (theirs[layer] ** 2).sum()
        total = total + alpha * ((outer @ inner - whole) ** 2).sum() / (whole**2).sum()
    return total / len(pair.full.blocks)


def test_the_mean_gradient_is_that_of_all_micro_batches_together(models: Models) -> None:
    distiller = make(models, **PLAIN_SGD, alpha=0.5)
    batches: list[np.ndarray] = []
    draw = distiller._batch
    vars(distiller)["_batch"] = lambda number: (batches.append(draw(number)), batches[-1])[1]
    steps = distiller.steps()
    first = next(steps)
    tensors = {name: value.clone().requires_grad_() for name, value in proxies(models[0]).items()}
    (batch,) = batches
    assert len(batch) == 10
    parts = [(batch[:4], 0.4), (batch[4:8], 0.4), (batch[8:], 0.2)]
    loss = torch.stack([share * plain_loss(models, tensors, part, 0.5) for part, share in parts]).sum()
    assert first.loss == pytest.approx(loss.item(), rel=1e-6)
    grads = torch.autograd.grad(loss, list(tensors.values()))
    for (name, before), grad in zip(proxies(models[0]).items(), grads, strict=True):
        torch.testing.assert_close(before - distiller.tensors[name], grad, rtol=1e-5, atol=2e-7)


def test_what_is_not_chosen_keeps_its_bits(models: Models) -> None:
    pair = models[0]
    before = proxies(pair)
    chosen = {f"{PROXIES}1.mlp.{name}": torch.zeros_like(before[f"{PROXIES}1.mlp.{name}"]).bool() for name in NEURONS}
    for name, rows in NEURONS.items():
        chosen[f"{PROXIES}1.mlp.{name}"][rows] = True
    distiller = make(models, chosen, weight_decay=0.1)
    for _ in distiller.steps():
        pass
    for name, after in distiller.tensors.items():
        moved = after != before[name]
        assert torch.equal(moved, chosen.get(name, torch.zeros_like(moved)))


# Neurons 5 to 9 of a layer: rows of the inner matrix, its bias, columns of the outer one.
NEURONS: dict[str, Any] = {"fc1.weight": np.s_[5:10], "fc1.bias": np.s_[5:10], "fc2.weight": np.s_[:, 5:10]}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_errors_fall_on_other_inputs_too(precision: str, models: Models) -> None:
    models = models if precision == "fp32" else make_models(precision)
    distiller = make(models, epochs=10, alpha=0.1)
    others = np.arange(24, 48)
    before = distiller.measure(others)
    steps = list(distiller.steps())
    after = distiller.measure(others)
    assert after.states < 0.5 * before.states
    assert after.products < 0.5 * before.products
    assert [step.step for step in steps] == list(range(1, 31))
    assert all(step.loss == step.states + 0.1 * step.products for step in steps)


def test_every_epoch_has_all_inputs_once_in_an_order_of_its_own(models: Models) -> None:
    distiller = make(models)
    batches = [distiller._batch(number).tolist() for number in range(1, 7)]
    assert [len(batch) for batch in batches] == [10, 10, 4] * 2
    first, second = ([place for batch in batches[start : start + 3] for place in batch] for start in (0, 3))
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second


@pytest.mark.parametrize(("epochs", "steps"), [(0, 0), (0.02, 1), (1, 3), (1.5, 5), (7 / 3, 7)])
def test_part_of_an_epoch(models: Models, epochs: float, steps: int) -> None:
    assert make(models, epochs=epochs).num_steps == steps


def test_the_learning_rate_rises_and_falls() -> None:
    settings = DistillSettings(lr=1.0, warmup=0.25)
    found = [learning_rate(settings, number, 8) for number in range(1, 9)]
    assert found == pytest.approx([1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert learning_rate(settings, 1, 1) > 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_restored_distillation_goes_on_to_the_same_bits(models: Models, optimizer: str) -> None:
    whole, first, second = (make(models, optimizer=optimizer) for _ in range(3))
    expected = list(whole.steps())
    steps = first.steps()
    for _ in range(4):
        next(steps)
    second.restore(first.state())
    assert list(second.steps()) == expected[4:]
    assert same_bits(second.tensors, whole.tensors)
    assert same_bits(second.state(), whole.state())


def spoil(models: Models) -> Models:
    pair, source = models
    name = f"{PROXIES}0.mlp.fc1.bias"
    spoiled = {**pair.held_params, name: pair.held_params[name] + 1e30}
    return Pair(pair.full, pair.held, pair.full_params, spoiled), source


@pytest.mark.parametrize(
    ("change", "words", "step"),
    [(spoil, {}, 1), (lambda models: models, {**PLAIN_SGD, "lr": 1000.0, "epochs": 5}, None)],
    ids=["at once", "later"],
)
def test_a_gradient_beyond_range_is_one_line(
    models: Models, change: Callable[[Models], Models], words: dict[str, Any], step: int | None
) -> None:
    with pytest.raises(UserError, match=r"^test, step \d+, tensor .*; expected finite values .*diverge") as caught:
        list(make(change(models), **words).steps())
    assert step is None or f"step {step}," in str(caught.value)


def test_a_sub_model_of_all_neurons_is_the_model(models: Models) -> None:
    full = models[0].full
    tensors = {
        f"blocks.{number}.mlp.{name}": plain(value.detach())
        for number, block in enumerate(full.blocks)
        for name, value in block.mlp.named_parameters()  # type: ignore[union-attr,operator]  # a timm block
    }
    held = HeldModel(full, range(len(full.blocks)), tensors)
    pair = Pair(full, held, full.initial(0), held.initial(0))
    errors = make((pair, models[1])).measure(np.arange(24))
    assert errors.states < 1e-12
    assert errors.products < 1e-12
    assert math.isfinite(errors.states)
