"""Intervals of the bootstrap: those of scipy where images are drawn one by one, wider where patients are."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from fedsim.measure import bootstrap as module
from fedsim.measure.bootstrap import intervals, measure_groups, resample
from fedsim.tasks.task import Classification

TASK = Classification(2)


def made_up(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(1)
    labels = torch.randint(2, (number,), generator=stream)
    return torch.randn(number, 2, generator=stream) + torch.nn.functional.one_hot(labels), labels


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    rows, labels = made_up(120)
    found = intervals(TASK, rows, labels, np.arange(120), np.random.default_rng(0))
    hits = (rows.argmax(1) == labels).double().numpy()
    theirs = bootstrap((hits,), np.mean, method="percentile", rng=1, n_resamples=9999).confidence_interval
    assert found["accuracy"] == pytest.approx(tuple(theirs), abs=0.015)
    value = TASK.measure(rows, labels)
    assert all(low < value[name] < high for name, (low, high) in found.items())


def test_images_of_one_patient_are_drawn_together() -> None:
    """Ten copies of an image are one patient's: they tell no more than the one."""
    rows, labels = made_up(30)
    once = intervals(TASK, rows, labels, np.arange(30), np.random.default_rng(0))
    copies = np.repeat(np.arange(30), 10)
    many = intervals(TASK, rows[copies], labels[copies], copies, np.random.default_rng(0))
    assert many["accuracy"] == pytest.approx(once["accuracy"])
    apart = intervals(TASK, rows[copies], labels[copies], np.arange(300), np.random.default_rng(0))
    width = {name: high - low for name, (low, high) in many.items()}
    assert all(apart[name][1] - apart[name][0] < 0.6 * width[name] for name in ("accuracy", "auroc"))


def test_a_resample_draws_as_many_as_there_are() -> None:
    drawn = resample(50, 200, np.random.default_rng(0))
    assert (drawn.sum(1) == 50).all()
    # Of 50 draws one misses a given cluster with (1 - 1/50)^50.
    assert (drawn == 0).mean() == pytest.approx((1 - 1 / 50) ** 50, abs=0.02)


def test_no_bit_depends_on_how_many_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = made_up(40)
    whole = intervals(TASK, rows, labels, np.arange(40), np.random.default_rng(0))
    monkeypatch.setattr(module, "MOST_WEIGHTS", 40 * 7)
    assert intervals(TASK, rows, labels, np.arange(40), np.random.default_rng(0)) == whole


def test_one_patient_has_no_interval() -> None:
    rows, labels = made_up(9)
    found = intervals(TASK, rows, labels, np.zeros(9, np.int64), np.random.default_rng(0))
    assert all(math.isnan(end) for ends in found.values() for end in ends)


def test_resamples_without_a_number_are_left_out() -> None:
    """With one image of the second class many a resample has none, and no AUROC."""
    rows, labels = made_up(12)
    labels = torch.zeros_like(labels).index_fill(0, torch.tensor([4]), 1)
    found = intervals(TASK, rows, labels, np.arange(12), np.random.default_rng(0))
    assert all(0 <= end <= 1 for end in found["auroc"])


def test_groups_are_measured_as_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = made_up(60)
    groups = [np.arange(0, 60, 2), np.array([1, 3, 5]), np.array([7])]
    monkeypatch.setattr(module, "MOST_WEIGHTS", 120)
    for found, places in zip(measure_groups(TASK, rows, labels, groups), groups, strict=True):
        expected = TASK.measure(rows[places], labels[places])
        assert found == pytest.approx(expected, nan_ok=True)
