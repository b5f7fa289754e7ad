"""Curves, points on them and calibration, by hand and against the libraries."""

import math

import numpy as np
import pytest
import torch
from monai.metrics.calibration import calibration_binning
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from fedsim.measure.curves import BINS, answered, curves, fixed_specificity, operating_point, probability, reliability
from fedsim.tasks.task import Decision


def question(score: list[float] | np.ndarray, truth: list[int] | np.ndarray) -> Decision:
    scores = np.asarray(score, np.float64)
    return Decision("tumour", np.arange(len(scores)), np.asarray(truth, bool), scores, scores > 0)


#: Ten images without it, with scores 0 to 9, and four with it.
ONE = question([*range(10), 3.5, 7.5, 8.5, 9.5], [0] * 10 + [1] * 4)


def test_sensitivity_at_fixed_specificity_by_hand() -> None:
    # 0.8: two of ten may be called, those with 8 and 9; so 7.5 is the lowest score that may be called a yes.
    assert fixed_specificity(ONE) == {0.8: 7.5, 0.9: 8.5, 0.95: 9.5}
    found = {point["specificity_asked"]: point for point in answered(ONE, "test", {})["operating_points"]}
    assert [found[asked]["sensitivity"] for asked in (0.8, 0.9, 0.95)] == [0.75, 0.5, 0.25]
    assert [found[asked]["specificity"] for asked in (0.8, 0.9, 0.95)] == [0.8, 0.9, 1.0]
    assert found[0.9]["threshold"] == pytest.approx(1 / (1 + math.exp(-8.5)))
    assert {point["threshold_from"] for point in found.values()} == {"test"}


def test_no_point_of_a_straight_piece_is_passed_over() -> None:
    # Pairs of one with and one without it: the curve is straight, and of its ten points each is a threshold.
    pairs = question(np.repeat(np.arange(10), 2), [0, 1] * 10)
    assert fixed_specificity(pairs) == {0.8: 8.0, 0.9: 9.0, 0.95: math.inf}
    # Beyond the last that has it, what is asked for is still what is had.
    apart = question(range(22), [0] * 20 + [1] * 2)
    assert fixed_specificity(apart) == {0.8: 16.0, 0.9: 18.0, 0.95: 19.0}


def test_a_threshold_of_validation_keeps_what_it_keeps() -> None:
    found = operating_point(ONE, 0.9, 3.5, "val")
    assert found["threshold_from"] == "val"
    assert (found["sensitivity"], found["specificity"]) == (1.0, 0.4)
    points = answered(ONE, "test", {0.9: 3.5})["operating_points"]
    assert [point["threshold_from"] for point in points] == ["test"] * 3 + ["val"]


def test_rates_are_those_of_sklearn() -> None:
    stream = np.random.default_rng(0)
    truth = stream.random(80) < 0.4
    one = question(stream.normal(size=80) + truth, truth)
    found = answered(one, "test", {})
    precision, recall, _, support = precision_recall_fscore_support(truth, one.answer)
    assert (found["negative_predictive_value"], found["positive_predictive_value"]) == pytest.approx(tuple(precision))
    assert (found["specificity"], found["sensitivity"]) == pytest.approx(tuple(recall))
    assert (found["images"], found["positives"]) == (80, support[1])
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, one.score))


def test_the_curves_have_the_areas() -> None:
    stream = np.random.default_rng(1)
    truth = stream.random(200) < 0.3
    one = question((stream.normal(size=200) + truth).round(1), truth)
    found, values = curves(one), answered(one, "test", {})
    roc, both = found["roc"], found["precision_recall"]
    assert np.trapezoid(roc["true_positive_rate"], roc["false_positive_rate"]) == pytest.approx(values["auroc"])
    steps = -np.diff(both["recall"]) * np.array(both["precision"])[:-1]
    assert steps.sum() == pytest.approx(values["average_precision"])
    # Each point is what saying yes from its threshold on gives.
    for threshold, false, true in zip(*roc.values(), strict=True):
        says = probability(one.score) >= threshold - 1e-12
        assert (says[~truth].mean(), says[truth].mean()) == pytest.approx((false, true))


@pytest.mark.parametrize("answer", [0, 1])
def test_a_settled_question_has_no_curve(answer: int) -> None:
    one = question([0.5, -1.0], [answer, answer])
    assert curves(one) == {}
    found = answered(one, "test", {0.9: 0.0})
    assert math.isnan(found["auroc"])
    assert math.isnan(found["average_precision"])
    assert [point["threshold_from"] for point in found["operating_points"]] == ["val"]
    assert math.isnan(found["specificity"] if answer else found["sensitivity"])


def test_nobody_to_ask() -> None:
    found = answered(question([], []), "test", {})
    assert found["images"] == 0
    assert math.isnan(found["calibration"]["expected_calibration_error"])


def test_calibration_by_hand() -> None:
    # 0.9 said three times and right twice, 0.3 said once and wrong; 1 is in the last bin, 0 in the first.
    found = reliability(np.array([0.9, 0.9, 0.9, 0.3]), np.array([True, True, False, False]))
    assert found["expected_calibration_error"] == pytest.approx(3 / 4 * (0.9 - 2 / 3) + 1 / 4 * 0.3)
    ends = reliability(np.array([0.0, 1.0]), np.array([False, True]))
    assert [(point["from"], point["to"]) for point in ends["points"]] == [(0, 1 / BINS), (1 - 1 / BINS, 1)]
    assert ends["expected_calibration_error"] == 0


def test_calibration_is_that_of_monai() -> None:
    stream = np.random.default_rng(2)
    chance = stream.random(500).astype(np.float32).astype(np.float64)
    truth = stream.random(500) < chance
    said, came, counts = calibration_binning(
        torch.from_numpy(chance)[None, None], torch.from_numpy(truth)[None, None], num_bins=BINS
    )
    found = reliability(chance, truth)
    assert [point["images"] for point in found["points"]] == counts.flatten().int().tolist()
    assert [point["said"] for point in found["points"]] == pytest.approx(said.flatten().tolist(), rel=1e-5)
    assert [point["came"] for point in found["points"]] == pytest.approx(came.flatten().tolist(), rel=1e-5)
    error = float((counts * (said - came).abs()).sum() / 500)
    assert found["expected_calibration_error"] == pytest.approx(error, rel=1e-4)
