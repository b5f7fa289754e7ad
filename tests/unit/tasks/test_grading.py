"""Grades: classes with an order."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, mean_absolute_error

from fedsim.errors import UserError
from fedsim.measure.scores import worth
from fedsim.tasks.choose import task_of
from fedsim.tasks.grading import Grading
from fedsim.tasks.task import classification_metrics
from tests.helpers import make_config, make_dataset


def made_up() -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (60,), generator=stream)
    scores = torch.randn(60, 5, generator=stream) + 2 * torch.nn.functional.one_hot((labels + 1).clamp(max=4), 5)
    return scores, labels


def test_kappa_and_distance_are_those_of_sklearn_and_the_rest_is_that_of_classes() -> None:
    scores, labels = made_up()
    found, predicted = Grading(5).measure(scores, labels), scores.argmax(1)
    assert found["quadratic_kappa"] == pytest.approx(cohen_kappa_score(labels, predicted, weights="quadratic"))
    assert found["mae"] == pytest.approx(mean_absolute_error(labels, predicted))
    assert {name: found[name] for name in classification_metrics(scores, labels)} == classification_metrics(
        scores, labels
    )
    assert tuple(found) == Grading(5).metrics


def test_grades_that_nobody_has_still_count_as_steps() -> None:
    """Between the grades 0 and 4 lie four steps, though the images have two grades: scikit-learn must be told."""
    labels, predicted = torch.tensor([0, 0, 4, 4]), torch.tensor([0, 4, 4, 3])
    found = Grading(5).measure(torch.nn.functional.one_hot(predicted, 5).float(), labels)
    assert found["mae"] == (4 + 1) / 4
    told = cohen_kappa_score(labels, predicted, weights="quadratic", labels=range(5))
    untold = cohen_kappa_score(labels, predicted, weights="quadratic")
    assert found["quadratic_kappa"] == pytest.approx(told)
    assert abs(told - untold) > 0.01


def test_one_grade_throughout_has_no_kappa() -> None:
    found = Grading(3).measure(torch.tensor([[0.0, 1.0, 0.0]] * 4), torch.ones(4).long())
    assert math.isnan(found["quadratic_kappa"])
    assert found["mae"] == 0


def test_scores_that_are_no_numbers() -> None:
    scores, labels = made_up()
    scores[0, 0] = torch.nan
    assert all(map(math.isnan, Grading(5).measure(scores, labels).values()))


def test_a_graded_set_poses_the_task_and_a_smaller_distance_is_better() -> None:
    dataset, _ = make_dataset([30], num_classes=4)
    assert isinstance(task_of(replace(dataset, is_graded=True), make_config()), Grading)
    with pytest.raises(UserError, match=r"which has no masks; expected cross_entropy or focal, or ordinal$"):
        task_of(replace(dataset, is_graded=True), make_config(train={"loss": "dice"}))
    assert not isinstance(task_of(dataset, make_config()), Grading)
    assert worth({"mae": 0.5}, "mae") > worth({"mae": 0.75}, "mae")
    assert worth({"quadratic_kappa": 0.5}, "quadratic_kappa") < worth({"quadratic_kappa": 0.75}, "quadratic_kappa")


def test_validation_of_one_grade_says_nothing_of_agreement() -> None:
    dataset, _ = make_dataset([30], num_classes=4)
    labels = dataset.labels.index_fill(0, torch.from_numpy(dataset.val), 2)
    one = replace(dataset, labels=labels, is_graded=True)
    assert Grading(4).undecided(one, one.val).keys() == {"auroc", "quadratic_kappa"}
    assert Grading(4).undecided(one, np.concatenate([one.val, one.test])) == {}
