"""Metrics of many weightings at once are those of the images so repeated, whatever the task."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from fedsim.tasks.findings import Findings
from fedsim.tasks.grading import Grading
from fedsim.tasks.segmentation import Segmentation
from fedsim.tasks.task import Classification, Task
from fedsim.tasks.texts import Regression, TextClassification
from fedsim.tasks.weighted import aurocs, average_precisions, by_score

NUM_IMAGES = 40


@dataclass(frozen=True)
class Case:
    task: Task
    rows: Tensor
    labels: Tensor


def of_classes(task: Classification, num_labels: int) -> Case:
    """Scores on a coarse grid, so that many tie; the classes from ``num_labels`` on are predicted and never true."""
    stream = torch.Generator().manual_seed(3)
    labels = torch.randint(num_labels, (NUM_IMAGES,), generator=stream)
    scores = torch.randn(NUM_IMAGES, task.num_classes, generator=stream).mul(2).round() / 2
    return Case(task, scores, labels)


def of_findings() -> Case:
    """The third finding is never there, and the fourth never known."""
    stream = torch.Generator().manual_seed(4)
    targets = torch.randint(-1, 2, (NUM_IMAGES, 4), generator=stream).float()
    targets[:, 2].clamp_(max=0)
    targets[:, 3] = -1
    targets[5] = -1
    scores = torch.randn(NUM_IMAGES, 4, generator=stream).mul(2).round() / 2
    return Case(Findings(("a", "b", "c", "d")), torch.cat([scores, targets], 1), torch.zeros(NUM_IMAGES).long())


def of_masks(absent_class: str) -> Case:
    task = Segmentation(("background", "grey", "white"), "dice", absent_class)  # type: ignore[arg-type]  # a parameter
    stream = torch.Generator().manual_seed(5)
    masks = torch.randint(2, (NUM_IMAGES, 4, 4), generator=stream)  # the third class is never in a mask
    outputs = torch.randn(NUM_IMAGES, 3, 4, 4, generator=stream)
    outputs[:20, 2] = -9
    return Case(task, task.rows(outputs, masks), torch.zeros(NUM_IMAGES).long())


CASES = {
    "two classes": of_classes(Classification(2), 2),
    "an absent class": of_classes(Classification(4), 3),
    "texts": of_classes(TextClassification(2), 2),
    "texts of three classes": of_classes(TextClassification(3), 3),
    "grades": of_classes(Grading(5), 4),
    "findings": of_findings(),
    "masks": of_masks("skip"),
    "masks, absent classes zero": of_masks("zero"),
    "numbers": Case(Regression(), torch.randn(NUM_IMAGES, 2), torch.zeros(NUM_IMAGES).long()),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_many_weightings_are_the_images_repeated(name: str) -> None:
    case = CASES[name]
    stream = np.random.default_rng(6)
    weights = stream.multinomial(NUM_IMAGES, np.full(NUM_IMAGES, 1 / NUM_IMAGES), size=12)
    weights = np.concatenate([weights, np.ones((1, NUM_IMAGES), np.int64), np.eye(NUM_IMAGES, dtype=np.int64)[:2]])
    found = case.task.measure_many(case.rows, case.labels, weights)
    assert found.keys() == set(case.task.metrics)
    for row, own in enumerate(weights):
        index = torch.from_numpy(np.repeat(np.arange(NUM_IMAGES), own))
        expected = case.task.measure(case.rows[index], case.labels[index])
        for metric in case.task.metrics:
            assert found[metric][row] == pytest.approx(expected[metric], nan_ok=True, abs=1e-6), metric


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"numbers"}))
def test_a_score_that_is_not_finite_makes_every_metric_nan(name: str) -> None:
    case = CASES[name]
    rows = case.rows.clone()
    rows[3, -1 if isinstance(case.task, Segmentation) else 0] = torch.nan
    found = case.task.measure_many(rows, case.labels, np.ones((2, NUM_IMAGES), np.int64))
    assert all(np.isnan(values).all() for values in found.values())
    assert all(np.isnan(value) for value in case.task.measure(rows, case.labels).values())


def test_areas_are_those_of_sklearn_with_weights() -> None:
    stream = np.random.default_rng(7)
    scores, truth = stream.normal(size=200).round(1), stream.random(200) < 0.3
    weights = stream.integers(0, 4, size=(5, 200))
    counts = by_score(scores, truth, weights)
    for row, own in enumerate(weights):
        assert aurocs(*counts)[row] == pytest.approx(roc_auc_score(truth, scores, sample_weight=own))
        assert average_precisions(*counts)[row] == pytest.approx(
            average_precision_score(truth, scores, sample_weight=own)
        )


@pytest.mark.parametrize("answer", [True, False])
def test_what_all_agree_on_has_no_area(answer: bool) -> None:
    counts = by_score(np.arange(4.0), np.full(4, answer), np.ones((1, 4), np.int64))
    assert np.isnan(aurocs(*counts)).all()
    assert np.isnan(average_precisions(*counts)).all()
