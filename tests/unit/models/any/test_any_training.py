"""Whole rounds on networks of all kinds: in blocks as one client at a time, with every LoRA method, and masks."""

from pathlib import Path
from typing import Any

import pytest

from fedsim.algorithms import METHODS
from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.measure.global_model import global_model
from tests.conformance.test_methods import ACTIVE
from tests.helpers import furthest, make_config, make_masked_dataset, make_simulation, play, simulate
from tests.unit.models.any.networks_any import MODULE, TINY
from tests.unit.models.any.test_any_encoders import scores_of_adapter

MIXED: dict[str, Any] = {"name": f"{MODULE}.mixed", "options": {"width": 4}}
RESNET: dict[str, Any] = {"name": TINY["resnet"].name, **TINY["resnet"].words}
LORA = {"r": 2, "lora_alpha": 4, "target": ["0", "fc"]}
MODELS = {
    "linear and convolutions": {**MIXED, "lora": LORA},
    "groups": {**MIXED, "lora": {**LORA, "target": ["all-conv"]}},
    "ResNet": {**RESNET, "lora": {**LORA, "target": ["conv2", "downsample.0"]}},
}
OF_LORA = sorted(name for name, path in METHODS.items() if ".lora." in path)
NEEDS_RANKS = ("hetlora", "raflora")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_blocks_are_one_client_at_a_time(name: str) -> None:
    sizes = [20, 9, 0, 17]
    (together, _), (alone, _) = (play(simulate(sizes, size, model=MODELS[name]), 2) for size in (4, 1))
    assert furthest(together.params, alone.params)[0] < 1e-5
    start = simulate(sizes, 4, model=MODELS[name]).initial_state().params
    assert all((alone.params[key] != start[key]).any() for key in start)


@pytest.mark.filterwarnings("error::UserWarning:peft")
@pytest.mark.parametrize("method", OF_LORA)
def test_every_method_trains_convolutions(method: str, tmp_path: Path) -> None:
    lora = {**LORA, "ranks": [2, 1, 2]} if method in NEEDS_RANKS else LORA
    words = {"algorithm": {"name": method, **ACTIVE[method]}, "model": {**MIXED, "lora": lora}}
    state, _ = play(simulate([9, 6, 12], 3, **words), 2)
    sim = simulate([9, 6, 12], 2, **words)
    other, _ = play(sim, 2)
    assert furthest(other.params, state.params)[0] < 1e-4
    found, expected = scores_of_adapter(tmp_path, sim.model, dict(global_model(sim, state).params))
    assert (found - expected).abs().max() < 1e-4


def test_groups_hold_no_change_of_the_frozen_weights() -> None:
    words = {**MIXED, "lora": {**LORA, "target": ["all-conv"]}}
    with pytest.raises(UserError, match=r"found net\.grouped, a convolution of groups, with a method that changes"):
        simulate([9, 6], 2, algorithm={"name": "flora"}, model=words)


def test_single_images_are_protected_in_linear_layers_alone() -> None:
    privacy = {"mechanism": {"name": "record", "bound": 1e6}, "noise_multiplier": 0.0, "delta": 1e-3}
    train = {"batch_size": 9, "momentum": 0.0}
    linear = {**MIXED, "lora": {**LORA, "target": ["fc"]}}
    private, plain = (
        play(simulate([9] * 3, 3, model=linear, train=train, privacy=words), 2)[0] for words in (privacy, None)
    )
    assert furthest(private.params, plain.params)[0] < 1e-5
    with pytest.raises(UserError, match=r"privacy\.mechanism: found record with LoRA on net\.first\.0, a convolution"):
        simulate([9] * 3, 3, model={**MIXED, "lora": LORA}, privacy=privacy)


def test_a_unet_learns_masks_by_its_convolutions_alone() -> None:
    lora = {"r": 4, "lora_alpha": 8, "target": ["all-conv"]}
    model = {"name": TINY["unet"].name, **TINY["unet"].words, "lora": lora}
    dataset, parts = make_masked_dataset([12, 7], 16)
    ends = []
    for size in (2, 1):
        clients = {"count": 2, "partition": {"name": "iid"}, "per_block": size}
        words = {"model": model, "clients": clients, "data": {"image_size": 16}, "train": {"lr": 0.5, "batch_size": 4}}
        state, records = play(make_simulation(make_config(**words), dataset, parts), 3)
        ends.append(state.params)
        assert records[-1].row["train_loss"] < records[0].row["train_loss"]
    assert furthest(*ends)[0] < 1e-5
    assert all(name.endswith((".lora_a", ".lora_b")) for name in ends[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"train": "head", "lora": None}, r"found head with monai:unet, which scores pixels without a head; .* lora"),
        ({"weights": None}, r"weights.*random, or a file"),
        ({"weights": "net.onnx"}, r"weights.*random, or a file"),
    ],
)
def test_sections_that_mean_nothing(words: dict[str, Any], message: str) -> None:
    section = {"name": "monai:unet", "weights": "random", "lora": LORA, **words}
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate(section)


def test_a_submodel_needs_a_plain_transformer() -> None:
    with pytest.raises(UserError, match=r"model\.submodel: found a sub-model of .*no plain transformer"):
        simulate([9], 1, model={**RESNET, "lora": {"target": ["conv2"]}, "submodel": {"layers": [0]}})
