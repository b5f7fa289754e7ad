"""What images cannot be protected under, refused in one line, and what passes."""

from typing import Any

import pytest

from fedsim.errors import UserError
from fedsim.models.specs import ParamSpec
from tests.helpers import LORA, TINY_VIT, furthest, make_config, make_masked_dataset, make_simulation, play, simulate
from tests.submodels import tiny_submodel
from tests.unit.training.private_steps import SIZES, protected

RESNET = {"name": "timm:test_resnet", "weights": "random"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "BatchNorm": ({"model": {**RESNET, "train": "all"}}, "normalises an image by the others"),
    "amplitudes": ({"model": {**TINY_VIT, "lora": LORA, "amplitude_norm": {}}}, "normalises an image by the others"),
    "whole network": ({"model": {**TINY_VIT, "train": "all"}}, "expected model.train: lora or head"),
    "sub-model": (
        {"model": {**TINY_VIT, "lora": LORA, "submodel": {"folder": tiny_submodel(48)}}},
        "found record with model.submodel",
    ),
    "prrfl": ({"algorithm": {"name": "prrfl", "decide_on": "train"}}, "which scores its models on the images"),
    "fedprox": ({"algorithm": {"name": "fedprox"}}, "FedProx.loss with more in it than the task's"),
    "moon": ({"algorithm": {"name": "moon"}}, "MOON.loss with more in it"),
    "fedsam": ({"algorithm": {"name": "fedsam"}}, "FedSAM.gradient: found a second call of grad_of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_protected_is_refused_in_one_line(case: str) -> None:
    sections, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        play(simulate(SIZES, 3, privacy=protected(1.0, 1.0), **sections), 1)
    assert "\n" not in str(caught.value)


def test_masks_are_refused() -> None:
    unet = {"name": "monai:unet", "weights": "random", "options": {"channels": [4, 8], "strides": [2]}}
    config = make_config(model=unet, data={"image_size": 16}, clients={"count": 1}, privacy=protected(1.0, 1.0))
    with pytest.raises(
        UserError, match=r"privacy\.mechanism: found record with monai:unet that trains .*one answer each"
    ):
        make_simulation(config, *make_masked_dataset([4], 16))


@pytest.mark.parametrize("train", [{"clip_norm": 1.0}, {"shuffle": False}])
def test_training_keys_without_effect_are_refused(train: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"train.{next(iter(train))}: found .* with privacy.mechanism: record"):
        make_config(train=train, privacy=protected(1.0, 1.0))


@pytest.mark.parametrize("settings", [{"name": "fedprox", "mu": 0.0}, {"name": "fedsam", "radius": 0.0}])
def test_methods_at_a_setting_that_leaves_the_gradient_alone_pass(settings: dict[str, Any]) -> None:
    neutral, _ = play(simulate(SIZES, 3, privacy=protected(1.0, 1.0), algorithm=settings), 1)
    fedavg, _ = play(simulate(SIZES, 3, privacy=protected(1.0, 1.0)), 1)
    assert furthest(neutral.params, fedavg.params) == (0.0, max(neutral.params))


def test_a_specs_kind_that_nobody_knows_is_refused() -> None:
    sim = simulate(SIZES, 3)
    sim.held.specs["new"] = ParamSpec((2,), "count")
    try:
        with pytest.raises(UserError, match="that trains new"):
            simulate(SIZES, 3, privacy=protected(1.0, 1.0))
    finally:
        del sim.held.specs["new"]
