"""Which differences between contenders hold: paired over seeds, corrected for how many were looked at.

Shapes: S seeds, M contenders.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

LEVEL = 0.05
#: With two, both signs are the same in half of the cases, and a t-test hangs on one degree of freedom.
FEWEST_SEEDS = 3
RESAMPLES = 9999
#: Differences that differ by less, relative to their size, are the same: rounding is no spread.
SAME = 1e-9


@dataclass(frozen=True)
class Difference:
    """``first`` minus ``second`` over the seeds that both have.

    ``low`` to ``high``: the interval of Student's paired t at 1 - level, for this pair alone; ``resampled_low`` to
    ``resampled_high``: of the bootstrap. ``p``: of the paired t-test; ``p_corrected``: after Holm, over all pairs.
    ``holds``: whether the corrected p is below the level and the bootstrap's interval leaves zero out, over three seeds
    or more. nan, and no difference that holds, with fewer than two, and where the difference is the same in all.
    """

    first: str
    second: str
    seeds: int
    mean: float
    low: float
    high: float
    resampled_low: float
    resampled_high: float
    p: float
    p_corrected: float
    holds: bool


def all_differences(scores: pd.DataFrame, level: float = LEVEL) -> dict[tuple[str, str], Difference]:
    """Compare each two of the columns of ``scores`` (S, M); nan where a contender lacks a seed.

    All pairs are corrected together (Holm, 1979): whoever is best is known from the same scores, so that looking at
    the best one's differences alone is looking at all. In the result both orders of a pair stand.
    """
    pairs = list(combinations(scores.columns, 2))
    tested = [_tested(scores, first, second, level) for first, second in pairs]
    corrected = holm([row["p"] for row in tested])
    found = {}
    for (first, second), row, p in zip(pairs, tested, corrected, strict=True):
        excludes_zero = row["resampled_low"] > 0 or row["resampled_high"] < 0
        holds = bool(row["seeds"] >= FEWEST_SEEDS and p < level and excludes_zero)
        one = Difference(first, second, p_corrected=p, holds=holds, **row)
        found[first, second], found[second, first] = one, _turned(one)
    return found


def _tested(scores: pd.DataFrame, first: str, second: str, level: float) -> dict[str, Any]:
    from scipy import stats  # type: ignore[import-untyped]  # no stubs; late: half a second that few need

    delta_S = (scores[first] - scores[second]).dropna().to_numpy(float)
    nan = float("nan")
    row: dict[str, Any] = {"seeds": len(delta_S), "mean": float(delta_S.mean()) if len(delta_S) else nan}
    if len(delta_S) < 2 or np.ptp(delta_S) <= SAME * np.abs(delta_S).max():
        return row | dict.fromkeys(("low", "high", "resampled_low", "resampled_high", "p"), nan)
    test = stats.ttest_1samp(delta_S, 0.0)
    interval = test.confidence_interval(1 - level)
    resampled = _resampled(delta_S, level)
    row |= {"low": float(interval.low), "high": float(interval.high), "p": float(test.pvalue)}
    return row | {"resampled_low": resampled[0], "resampled_high": resampled[1]}


def _resampled(delta_S: npt.NDArray[np.float64], level: float) -> tuple[float, float]:
    """Return the bootstrap's percentile interval of the mean, the same at every call."""
    from scipy import stats  # late, as above

    found = stats.bootstrap(
        (delta_S,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=1 - level,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _turned(one: Difference) -> Difference:
    """Return the same difference the other way round."""
    low, high, resampled_low, resampled_high = -one.high, -one.low, -one.resampled_high, -one.resampled_low
    return Difference(
        one.second,
        one.first,
        one.seeds,
        -one.mean,
        low,
        high,
        resampled_low,
        resampled_high,
        one.p,
        one.p_corrected,
        one.holds,
    )


def holm(values: list[float]) -> list[float]:
    """Return p-values corrected for their number, as Holm does; nan counts as a test made, and stays."""
    p = np.array([1.0 if np.isnan(value) else value for value in values])
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return [float("nan") if np.isnan(value) else float(new) for value, new in zip(values, corrected, strict=True)]


def best_of(scores: pd.DataFrame, *, lower: bool = False) -> str | None:
    """Return the contender with the best mean of those with the most seeds; None where no one has a score.

    One that lacks a seed may lead for the easy seeds that it has, with differences to it that speak against it.
    """
    counts = scores.count()
    means = scores.loc[:, counts == counts.max()].mean().dropna()
    if means.empty:
        return None
    return str(means.idxmin() if lower else means.idxmax())


def better_than(name: str, differences: dict[tuple[str, str], Difference], *, lower: bool = False) -> list[str]:
    """Return the contenders that are better than this one by a difference that holds."""
    against = (one for (first, _), one in differences.items() if first == name)
    return [one.second for one in against if one.holds and (one.mean > 0) == lower]


def is_best(
    name: str, scores: pd.DataFrame, differences: dict[tuple[str, str], Difference], *, lower: bool = False
) -> bool:
    """Whether a contender is better than each other one by a difference that holds, and there is another."""
    others = [other for other in scores.columns if other != name]
    return bool(others) and all(name in better_than(other, differences, lower=lower) for other in others)
