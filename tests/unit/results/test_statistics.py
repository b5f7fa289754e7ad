"""Which differences hold: 200 made-up comparisons each, and numbers by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedsim.results.statistics import LEVEL, all_differences, best_of, holm, is_best

NUM = 200
SEEDS = 5


def num_marked(num_contenders: int, shift: float, seed: int) -> int:
    """How many of NUM comparisons end with a best contender; the last one's scores lie ``shift`` above the others'.

    A seed's share is common to all contenders, and what is left has such a size that differences of two have a standard
    deviation of 1.
    """
    stream, marked = np.random.default_rng(seed), 0
    for _ in range(NUM):
        values = stream.normal(size=(SEEDS, num_contenders)) / np.sqrt(2) + 3 * stream.normal(size=(SEEDS, 1))
        values[:, -1] += shift
        scores = pd.DataFrame(values, columns=[f"m{number}" for number in range(num_contenders)])
        best = best_of(scores)
        assert best is not None
        if is_best(best, scores, all_differences(scores)):
            assert shift == 0 or best == scores.columns[-1]
            marked += 1
    return marked


@pytest.mark.parametrize("num_contenders", [2, 4])
def test_equal_contenders_are_marked_at_the_level(num_contenders: int) -> None:
    marked = num_marked(num_contenders, 0.0, seed=1)
    print(f"{num_contenders} equal contenders: {marked} of {NUM} marked")
    assert stats.binomtest(marked, NUM, LEVEL, alternative="greater").pvalue > 0.05


def test_a_difference_of_two_deviations_is_found() -> None:
    marked = num_marked(2, 2.0, seed=2)
    print(f"two deviations: {marked} of {NUM} found")
    assert marked >= 0.8 * NUM


def test_a_difference_by_hand() -> None:
    scores = pd.DataFrame({"a": [0.8, 0.9, 0.7, 0.85], "b": [0.7, 0.75, 0.66, 0.8], "c": [0.1, 0.3, 0.2, np.nan]})
    found = all_differences(scores)
    delta = np.array([0.1, 0.15, 0.04, 0.05])
    t = delta.mean() / (delta.std(ddof=1) / 2)
    one = found["a", "b"]
    assert one.seeds == 4
    assert one.mean == pytest.approx(delta.mean())
    assert one.p == pytest.approx(2 * stats.t.sf(t, 3))
    half = stats.t.ppf(0.975, 3) * delta.std(ddof=1) / 2
    assert (one.low, one.high) == pytest.approx((delta.mean() - half, delta.mean() + half))
    assert one.low < one.resampled_low < one.resampled_high < one.high
    turned = found["b", "a"]
    assert (turned.mean, turned.low, turned.high) == pytest.approx((-one.mean, -one.high, -one.low))
    assert turned.holds == one.holds
    assert found["a", "c"].seeds == 3


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    corrected = holm([0.01, float("nan")])
    assert corrected[0] == pytest.approx(0.02)
    assert np.isnan(corrected[1])


@pytest.mark.parametrize(
    "other", [[0.4, 0.5, 0.6], [0.3, 0.4, 0.5], [np.nan, np.nan, 0.1]], ids=["the same", "as far", "one seed"]
)
def test_no_spread_is_no_evidence(other: list[float]) -> None:
    scores = pd.DataFrame({"a": [0.4, 0.5, 0.6], "b": other})
    one = all_differences(scores)["a", "b"]
    assert np.isnan(one.p)
    assert not one.holds


def test_less_is_better_where_it_is() -> None:
    scores = pd.DataFrame({"a": [0.4, 0.5], "b": [0.6, 0.7], "c": [np.nan, np.nan]})
    assert best_of(scores) == "b"
    assert best_of(scores, lower=True) == "a"
    assert best_of(scores[["c"]]) is None
    assert not is_best("a", scores[["a"]], {})


def test_one_that_lacks_a_seed_is_not_the_best() -> None:
    """Its one seed is an easy one, in which another is better."""
    scores = pd.DataFrame({"whole": [0.5, 0.9], "easy": [np.nan, 0.8]})
    assert best_of(scores) == "whole"
