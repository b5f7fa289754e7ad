"""Metrics of small cases worked out by hand, and scores that do not depend on the batches."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fedsim.measure.scores import evaluate, evaluation_rows
from fedsim.tasks.task import classification_metrics, log_odds
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


@pytest.mark.parametrize("gap", [80, 226])
def test_auroc_of_scores_that_are_all_but_certain_is_that_of_the_margins(gap: int) -> None:
    """Probabilities in float64 are exactly 1 from a gap of 37 on, and would tie."""
    stream = torch.Generator().manual_seed(gap)
    labels = torch.randint(2, (200,), generator=stream)
    scores = torch.randn(200, 2, generator=stream) + 0.5 * torch.nn.functional.one_hot(labels)
    scores *= gap / (scores[:, 1] - scores[:, 0]).abs().max()
    margins = (scores[:, 1].double() - scores[:, 0].double()).numpy()
    of_classes = [roc_auc_score(labels == label, log_odds(scores, label)) for label in (0, 1)]
    assert of_classes[0] == of_classes[1] == roc_auc_score(labels, margins)
    assert classification_metrics(scores, labels)["auroc"] == of_classes[0]
    assert classification_metrics(scores.double(), labels)["auroc"] == of_classes[0]


def test_auroc_of_many_classes_ranks_what_no_probability_tells_apart() -> None:
    # The first class leads by 100, 90 and 60; its probability is 1 in all three, and the truth follows the lead.
    scores = torch.tensor([[100.0, 0.0, -5.0], [90.0, 0.0, -5.0], [60.0, 0.0, -5.0], [0.0, 1.0, 2.0]])
    found = [roc_auc_score(truth, log_odds(scores, 0)) for truth in ([1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0])]
    assert found == [1, pytest.approx(2 / 3), pytest.approx(1 / 3)]
    # Labels 0 0 1 1: both classes are told apart without a mistake.
    assert classification_metrics(scores, torch.tensor([0, 0, 1, 1]))["auroc"] == 1


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
    assert evaluate(sim, params).keys() == {"val", "test"}
