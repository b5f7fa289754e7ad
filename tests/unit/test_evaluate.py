"""Metrics of small cases worked out by hand, and scores that do not depend on the batches."""

import math

import numpy as np
import pytest
import torch

from fedsim.evaluate import evaluation_rows
from fedsim.tasks import classification_metrics
from tests.helpers import simulate


def test_by_hand() -> None:
    # Labels 0 0 0 1, predictions 0 0 1 1.
    scores = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    found = classification_metrics(scores, torch.tensor([0, 0, 0, 1]))
    assert found["accuracy"] == 0.75
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["recall"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["precision"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert found["auroc"] == 1
    losses = [math.log(1 + math.exp(-gap)) for gap in (2, 1, -1, 3)]
    assert found["loss"] == pytest.approx(np.mean(losses))


def test_auroc_counts_pairs_and_half_of_ties() -> None:
    scores = torch.tensor([[0.0, 0.1], [0.0, 0.5], [0.0, 0.5], [0.0, 0.9]])
    # Pairs (class 1, class 0): 0.5 > 0.1, 0.5 = 0.5, 0.9 > 0.1, 0.9 > 0.5.
    assert classification_metrics(scores, torch.tensor([0, 1, 0, 1]))["auroc"] == pytest.approx(3.5 / 4)


def test_a_class_that_nobody_has() -> None:
    """Class 2 is predicted once and never true: it counts in the macro means, not in balanced accuracy."""
    scores = torch.eye(4)[[0, 0, 1, 2]]
    found = classification_metrics(scores, torch.tensor([0, 0, 1, 1]))
    assert found["balanced_accuracy"] == pytest.approx((1 + 0.5) / 2)
    assert found["recall"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["precision"] == pytest.approx((1 + 1 + 0) / 3)
    assert found["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert not math.isnan(found["auroc"])


def test_a_single_class_has_no_auroc() -> None:
    found = classification_metrics(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 0]))
    assert math.isnan(found["auroc"])
    assert found["accuracy"] == found["balanced_accuracy"] == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers(bad: float) -> None:
    found = classification_metrics(torch.tensor([[1.0, 0.0], [bad, 0.0]]), torch.tensor([0, 1]))
    assert all(math.isnan(value) for value in found.values())


def test_any_batch_size() -> None:
    sim = simulate([9], 1)
    params = sim.initial_state().params
    whole, *others = (
        evaluation_rows(sim.task, sim.model, params, sim.images, sim.dataset.val, size, sim.group)
        for size in (12, 5, 1)
    )
    assert whole.shape == (12, 3)
    for scores in others:
        torch.testing.assert_close(scores, whole, rtol=1e-5, atol=1e-6)
    assert sim.evaluate(params).keys() == {"val", "test"}
