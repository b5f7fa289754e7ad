"""The task of images with masks: losses and metrics worked out by hand, and what depends on no batch."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.build import build_simulation, check_outputs
from fedsim.comm.group import open_group
from fedsim.configure import load_config
from fedsim.errors import UserError
from fedsim.measure.scores import evaluate, evaluation_rows
from fedsim.simulation import Simulation
from fedsim.tasks.choose import task_of
from fedsim.tasks.segmentation import SMOOTH, Segmentation, dice_loss, pixel_cross_entropy
from tests.distributed.runs import write_masked_config
from tests.helpers import TINY_VIT, make_config, make_dataset, make_masked_dataset, make_simulation, play

UNET = {"name": "monai:unet", "weights": "random", "options": {"channels": [4, 8], "strides": [2], "norm": "batch"}}
TASK = Segmentation(("background", "cell", "debris"))


def scores_of(masks: Tensor, confidence: float = 20.0) -> Tensor:
    """Scores (N, 3, H, W) whose largest is at the class of ``masks`` (N, H, W)."""
    return confidence * torch.nn.functional.one_hot(masks.long(), 3).movedim(-1, 1).float()


def masked_simulation(sizes: list[int], per_block: int = 1, side: int = 16, **sections: Any) -> Simulation:
    words = {"model": UNET, "clients": {"count": len(sizes), "per_block": per_block}} | sections
    config = make_config(**words | {"data": {"image_size": side, **sections.get("data", {})}})
    return make_simulation(config, *make_masked_dataset(sizes, side))


def test_metrics_by_hand() -> None:
    masks = torch.tensor([[[0, 0, 1, 1]], [[0, 0, 0, 0]], [[0, 0, 2, 0]]])
    predicted = torch.tensor([[[0, 1, 1, 1]], [[0, 0, 0, 0]], [[0, 0, 0, 0]]])
    found = TASK.measure(TASK.rows(scores_of(predicted), masks), torch.zeros(3))
    # Per image: background 2/3, 1, 6/7; cells 4/5, neither, neither; debris neither, neither, 0.
    background, cell, debris = np.mean([2 / 3, 1, 6 / 7]), 4 / 5, 0.0
    assert [found[f"dice/{name}"] for name in TASK.class_names] == pytest.approx([background, cell, debris])
    assert found["dice"] == pytest.approx((cell + debris) / 2)
    assert found["dice_all"] == pytest.approx((background + cell + debris) / 3)
    background, cell = np.mean([1 / 2, 1, 3 / 4]), 2 / 3
    assert [found[f"iou/{name}"] for name in TASK.class_names] == pytest.approx([background, cell, debris])
    assert (found["iou"], found["iou_all"]) == pytest.approx(((cell + debris) / 2, (background + cell + debris) / 3))
    assert set(found) == set(TASK.metrics)

    zero = Segmentation(TASK.class_names, absent_class="zero")
    found = zero.measure(zero.rows(scores_of(predicted), masks), torch.zeros(3))
    assert found["dice/cell"] == pytest.approx(4 / 5 / 3)


def test_a_class_that_no_image_has() -> None:
    masks = torch.tensor([[[0, 1]]])
    found = TASK.measure(TASK.rows(scores_of(masks), masks), torch.zeros(1))
    assert math.isnan(found["dice/debris"])
    assert found["dice"] == found["dice_all"] == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers(bad: float) -> None:
    masks = torch.tensor([[[0, 1]], [[1, 1]]])
    scores = scores_of(masks)
    scores[1, 2, 0, 0] = bad
    found = TASK.measure(TASK.rows(scores, masks), torch.zeros(2))
    assert all(math.isnan(value) for value in found.values())


def test_losses_by_hand() -> None:
    """One client of two images of two pixels, classes by even odds: 1/3 each."""
    outputs, masks = torch.zeros(1, 2, 3, 1, 2), torch.tensor([[[[0, 1]], [[1, 1]]]])
    weights = torch.tensor([[0.5, 0.5]])
    assert pixel_cross_entropy(outputs, masks, weights).item() == pytest.approx(math.log(3))
    ratios = [(2 * shared + SMOOTH) / (4 / 3 + size + SMOOTH) for shared, size in ((1 / 3, 1), (1, 3), (0, 0))]
    assert dice_loss(outputs, masks, weights).item() == pytest.approx(1 - np.mean(ratios))
    both = TASK.loss(outputs, masks, weights)
    assert both.item() == pytest.approx((math.log(3) + 1 - np.mean(ratios)) / 2)


@pytest.mark.parametrize("criterion", [pixel_cross_entropy, dice_loss])
def test_places_of_weight_zero_do_not_count(criterion: Callable[..., Tensor]) -> None:
    stream = torch.Generator().manual_seed(0)
    outputs = torch.randn(1, 3, 3, 4, 4, generator=stream)
    masks = torch.randint(3, (1, 3, 4, 4), generator=stream, dtype=torch.uint8)
    padded = criterion(outputs, masks, torch.tensor([[0.5, 0.5, 0.0]]))
    assert torch.equal(padded, criterion(outputs[:, :2], masks[:, :2], torch.tensor([[0.5, 0.5]])))
    assert not torch.equal(padded, criterion(outputs, masks, torch.full((1, 3), 1 / 3)))


def test_any_evaluation_batch() -> None:
    sim = masked_simulation([9])
    params = sim.initial_state().params
    whole, *others = (
        evaluation_rows(sim.task, sim.model, params, sim.images, sim.dataset.val, size, sim.group)
        for size in (12, 5, 1)
    )
    assert whole.shape == (12, 10)
    for rows in others:
        torch.testing.assert_close(rows, whole, rtol=1e-5, atol=1e-5)


def test_training_finds_the_rectangles() -> None:
    train = {"optimizer": "adamw", "momentum": 0.0, "lr": 0.03, "epochs": 8}
    sim = masked_simulation([30, 9], train=train)
    before = evaluate(sim, sim.initial_state().params)["test"]
    after = evaluate(sim, play(sim, 4)[0].params)["test"]
    assert after["dice"] > before["dice"] + 0.3
    assert after["loss"] < before["loss"] / 3


def test_figures_are_those_of_each_client_on_its_own_images() -> None:
    sim = masked_simulation([30, 0, 9], evaluate={"clients": True}, algorithm={"name": "fedbn"})
    end, records = play(sim, 2)
    rows = [row for row in records[-1].client_rows if "own" in row]
    assert [row["client"] for row in rows] == [0, 2]
    drops = []
    for row in rows:
        own = sim.algorithm.client_params([sim.store.read(row["client"])], end.params)["own"]
        params = {**end.params, **{name: value[0] for name, value in own.items()}}
        part = sim.trainer.own.held_out["test"][row["client"]]
        with torch.no_grad():
            outputs = sim.model.forward(params, sim.images.evaluation_batch(part), training=False)[0]
        expected = sim.task.measure(sim.task.rows(outputs, sim.images.targets[part]), sim.dataset.labels[part])
        before, after = (row["own"][moment]["test"] for moment in ("before", "after"))
        assert after == pytest.approx({name: expected[name] for name in sim.task.client_metrics}, nan_ok=True)
        drops.append(before["dice"] - after["dice"])
    assert records[-1].row["diagnostics"]["retrogress"]["test"] == pytest.approx(np.mean(drops))


def test_masks_move_with_their_images() -> None:
    """What is bright in an augmented image is what its mask says."""
    sim = masked_simulation([6], data={"augment": ["flip", "rotate90", "crop"]})
    places = torch.from_numpy(sim.parts[0])[None]
    draws = sim.images.draw((0,), np.ones((1, 1, 6), bool), seed=0, round=1, phase="train")
    assert draws is not None
    pixels, masks = sim.images.training_batch(places, draws[:, 0])
    bright = (pixels.mean(2) * 0.5 + 0.5) * 255
    assert torch.equal(masks > 0, bright > 145)
    assert not torch.equal(masks, sim.images.targets[places])


def test_losses_are_the_tasks() -> None:
    masked, plain = make_masked_dataset([4], 16)[0], make_dataset([4])[0]
    assert task_of(masked, make_config()) == Segmentation(masked.class_names, "dice_ce", "skip")
    words = {"train": {"loss": "dice"}, "evaluate": {"absent_class": "zero"}}
    assert task_of(masked, make_config(**words)) == Segmentation(masked.class_names, "dice", "zero")
    with pytest.raises(UserError, match=r"train\.loss: .*dice with made up, which has no masks"):
        task_of(plain, make_config(**words))
    assert task_of(masked, make_config()).decisive(None) == "dice"
    with pytest.raises(UserError, match=r"evaluate\.best_by: .*auroc"):
        task_of(masked, make_config()).decisive("auroc")


def test_network_and_data_set_must_fit() -> None:
    sim = masked_simulation([4])
    plain = make_simulation(
        make_config(model={**TINY_VIT, "train": "head"}, clients={"per_block": 1}), *make_dataset([4])
    )
    with pytest.raises(UserError, match=r"model\.name: .*monai:unet with made up, which has no masks"):
        check_outputs(sim.config, sim.model, plain.dataset)
    with pytest.raises(UserError, match=r"model\.name: .*which has masks.*monai:unet, fedsim:harmofl_unet"):
        check_outputs(plain.config, plain.model, sim.dataset)
    check_outputs(sim.config, sim.model, sim.dataset)


def test_a_method_that_compares_class_scores_of_images_is_refused(tmp_path: Path) -> None:
    changes = ["algorithm={name: prrfl}", "model.amplitude_norm=null"]
    config = load_config(write_masked_config(tmp_path), changes)
    with pytest.raises(UserError, match=r"^algorithm\.name: found prrfl, which compares class scores.* with nuclei"):
        build_simulation(config, open_group())
