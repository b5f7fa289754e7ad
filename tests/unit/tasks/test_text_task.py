"""Metrics and losses of texts, by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from fedsim.tasks.texts import Regression, TextClassification


def test_what_glue_asks_for() -> None:
    # Truth 1 1 1 0 0, predicted 1 1 0 0 1: two true positives, one false, one missed, one true negative.
    predicted, truth = torch.tensor([1, 1, 0, 0, 1]), torch.tensor([1, 1, 1, 0, 0])
    found = TextClassification(2).measure(torch.nn.functional.one_hot(predicted).float(), truth)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["f1_positive"] == pytest.approx(2 / 3)
    assert found["matthews"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert tuple(found) == TextClassification(2).metrics


def test_the_f1_of_the_positive_class_needs_two_classes() -> None:
    found = TextClassification(3).measure(torch.eye(3), torch.arange(3))
    assert math.isnan(found["f1_positive"])
    assert found["matthews"] == 1


def test_a_score_that_is_not_finite_makes_every_metric_nan() -> None:
    rows = torch.tensor([[0.0, math.nan], [1.0, 0.0]])
    assert all(map(math.isnan, TextClassification(2).measure(rows, torch.tensor([0, 1])).values()))
    assert all(map(math.isnan, Regression().measure(rows, torch.zeros(2)).values()))


def test_regression_against_scipy() -> None:
    stream = np.random.default_rng(0)
    rows = torch.from_numpy(stream.normal(size=(20, 2)).round(1)).float()  # rounded, so that there are ties
    found = Regression().measure(rows, torch.zeros(20))
    predictions, truth = rows.double().numpy().T
    assert found["spearman"] == pytest.approx(spearmanr(predictions, truth).statistic)
    assert found["pearson"] == pytest.approx(pearsonr(predictions, truth).statistic)
    assert found["mae"] == pytest.approx(np.abs(predictions - truth).mean())
    assert found["loss"] == pytest.approx(((predictions - truth) ** 2).mean())


def test_a_constant_prediction_has_no_correlation() -> None:
    found = Regression().measure(torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.zeros(2))
    assert math.isnan(found["spearman"])
    assert math.isnan(found["pearson"])
    assert found["loss"] == 1


def test_the_squared_error_leaves_out_places_without_weight() -> None:
    outputs = torch.tensor([[[1.0], [3.0], [math.pi]], [[0.0], [9.0], [9.0]]])
    targets = torch.tensor([[0.0, 1.0, 7.0], [2.0, 0.0, 0.0]])
    weights = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(Regression().loss(outputs, targets, weights), torch.tensor([2.5, 4.0]))
    assert Regression().rows(outputs[0], targets[0]).tolist()[:2] == [[1.0, 0.0], [3.0, 1.0]]
