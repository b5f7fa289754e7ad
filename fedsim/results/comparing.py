"""From runs to tables: contenders side by side, seed by seed.

A table is of one metric, of runs alike in the keys of ``per``. Scores are of the test images, at the round that
validation found best.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from fedsim.config.mistakes import nearest
from fedsim.errors import UserError
from fedsim.results.likeness import SEED, text_of, unlike
from fedsim.results.reading import CLIENTS, UNFINISHED, Results, is_less_better
from fedsim.results.statistics import FEWEST_SEEDS, LEVEL, Difference, all_differences, best_of, is_best

METHOD = "config.algorithm.name"
#: Keys of the config that change no result, or that name the run.
IDLE = (
    "config.name",
    "config.store",
    "config.track",
    "config.checkpoint",
    "config.clients.per_block",
    "config.evaluate.batch_size",
)
#: What beside the keys that tell contenders apart may change a run's numbers, as a reader is told of it.
OTHER_BITS = {
    "commit": "commits of fedsim",
    "device": "kinds of device",
    "threads": "numbers of threads per rank",
    "config.evaluate.batch_size": "values of evaluate.batch_size: by BatchNorm without statistics scores differ",
}
BYTES, STEPS = "bytes", "client_steps"
#: Simulated seconds since a run began, of runs with a clock.
CLOCK = "clock.seconds"
DEVIATION = re.compile(r"diagnostics\.(?:.+\.)?aggregation_deviation")


@dataclass(frozen=True)
class Comparison:
    """One table. ``numbers``: a row per contender. ``best``: see ``best_of``; ``holds``: it is better than all others.

    ``values``: by key of ``per``. ``scores`` (S, M): a column per contender, a row per seed. ``runs``: whose they are.
    ``notes``: what to know. ``places``: the contenders of all tables, in an order that gives each a colour of its own.
    """

    metric: str
    values: dict[str, str]
    numbers: pd.DataFrame
    scores: pd.DataFrame
    differences: dict[tuple[str, str], Difference]
    best: str | None
    holds: bool
    runs: list[str]
    notes: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Wish:
    """What is asked for. ``metrics``: names, none for what decided on the best round; ``reach``: a validation score.

    ``per``: keys with a table for each value; ``level``: of the tests; ``other_data``: whether runs on other data or
    splits may stand side by side.
    """

    metrics: Sequence[str] = ()
    per: Sequence[str] = ()
    level: float = LEVEL
    reach: float | None = None
    other_data: bool = False


def compare(results: Results, wish: Wish) -> list[Comparison]:
    """Return the tables; UserError for runs that cannot be compared, and for a metric that none has."""
    runs = results.runs[results.runs["status"] != UNFINISHED].reset_index(drop=True)
    if runs.empty:
        raise UserError("compare", "no run that has ended", "at least one")
    require_keys(runs, wish.per)
    found = unlike(runs, wish.per)
    if found and not wish.other_data:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        expected = "runs on the same data and splits; --per KEY for a table per value, or --other-data"
        raise UserError("compare", found[0] + more, expected)
    metrics = list(wish.metrics) or list(dict.fromkeys(runs["best_by"]))
    for metric in metrics:
        if f"test.{metric}" not in runs:
            known = [name.removeprefix("test.") for name in runs if name.startswith("test.")]
            raise UserError("--metric", metric, nearest(metric, known))
    notes = [f"{len(results.runs) - len(runs)} runs that have not ended are left out"] * (len(runs) < len(results.runs))
    notes += [f"not alike: {line}" for line in found]
    rounds = results.rounds.assign(bytes=both_ways(results.rounds))
    grouped = groups(runs, wish.per)
    tables = [
        table(part, rounds, metric, dict(zip(wish.per, values, strict=True)), wish, notes)
        for values, part in grouped
        for metric in metrics
    ]
    names = dict.fromkeys(name for one in tables for name in one.scores)
    return [replace(one, places={name: place for place, name in enumerate(names)}) for one in tables]


def both_ways(rows: pd.DataFrame) -> pd.Series:
    """Return the bytes up and down; nan where they are hidden."""
    return rows["bytes_up"].astype(float) + rows["bytes_down"].astype(float)


def require_keys(runs: pd.DataFrame, per: Sequence[str]) -> None:
    """UserError for a key that no config of the runs has."""
    for key in per:
        if f"config.{key}" not in runs:
            raise UserError("--per", key, "a key of the config: " + nearest(key, config_keys(runs)))


def config_keys(runs: pd.DataFrame) -> list[str]:
    """Return the keys of the runs' configs."""
    return [name.removeprefix("config.") for name in runs if name.startswith("config.")]


def groups(runs: pd.DataFrame, per: Sequence[str]) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """Yield the runs by their values of ``per``."""
    if not per:
        yield (), runs
        return
    for values, part in runs.groupby([text_of(runs[f"config.{key}"]) for key in per], sort=False):
        yield tuple(value.strip('"') for value in values), part.reset_index(drop=True)


def names_of(runs: pd.DataFrame) -> pd.Series:
    """Return each run's name in a sweep's list, where that stands for one method alone, or else its method."""
    methods = runs[METHOD].astype(str)
    is_one_method = methods.groupby(runs["listed"]).transform("nunique") == 1
    return methods.where(~is_one_method, runs["listed"])


def labels(runs: pd.DataFrame) -> pd.Series:
    """Return what each run's contender is called: its name, and the keys in which runs of one name differ."""
    names = named = names_of(runs)
    runs = without_solved(runs)
    for key in config_keys(runs):
        name = f"config.{key}"
        if name == SEED or name.startswith(IDLE):
            continue
        texts = text_of(runs[name])
        if (texts.groupby(names).nunique() > 1).any():
            differs = texts.groupby(names).transform("nunique") > 1
            shown = f", {key}=" + texts.str.strip('"')
            named = named.where(~differs, named + shown)
    return named


def without_solved(runs: pd.DataFrame) -> pd.DataFrame:
    """Return runs without the noise that follows from an epsilon: every partition has its own."""
    noise, epsilon = "config.privacy.noise_multiplier", "config.privacy.epsilon"
    if not {noise, epsilon} <= {*runs.columns}:
        return runs
    return runs.assign(**{noise: runs[noise].where(runs[epsilon].isna(), None)})


def table(
    runs: pd.DataFrame, rounds: pd.DataFrame, metric: str, values: dict[str, str], wish: Wish, notes: list[str]
) -> Comparison:
    """Compare the runs of one table. Metrics of the clients' own models choose a round by themselves."""
    runs = runs.assign(contender=labels(runs), best_by=metric if metric.startswith(CLIENTS) else runs["best_by"])
    repeated = runs[runs.duplicated(["contender", SEED])]
    if len(repeated):
        first = repeated.iloc[0]
        found = f"two runs of {first['contender']} with seed {first[SEED]}, one of them {first['run']}"
        raise UserError("compare", found, "each contender once with a seed")
    scores = runs.pivot(index=SEED, columns="contender", values=f"test.{metric}").astype(float)
    scores = scores[list(dict.fromkeys(runs["contender"]))]
    lower = is_less_better(metric)
    differences = all_differences(scores, wish.level)
    best = best_of(scores, lower=lower)
    by_run = dict(iter(rounds.groupby("run", sort=False)))
    within = {column: at_equal(runs, by_run, metric, column) for column in (BYTES, STEPS)}
    deviations = runs["run"].map(lambda name: deviation(by_run[name]))
    reached = {} if wish.reach is None else spent_to_reach(runs, by_run, metric, wish.reach)
    rows = []
    for name in scores.columns:
        own = runs["contender"] == name
        row = {"contender": name, "seeds": int(scores[name].count())}
        row |= {"mean": scores[name].mean(), "spread": scores[name].std(ddof=1)}
        if best is not None and name != best:
            one = differences[name, best]
            row |= {"difference": one.mean, "low": one.low, "high": one.high, "p_holm": one.p_corrected}
            row |= {"resampled_low": one.resampled_low, "resampled_high": one.resampled_high, "holds": one.holds}
        row |= {key: runs.loc[own, key].astype(float).mean() for key in ("bytes_up", "bytes_down", "seconds", STEPS)}
        row["epsilon"] = runs.loc[own, "epsilon"].astype(float).mean(skipna=False) if "epsilon" in runs else np.nan
        row["deviation"] = deviations[own].mean()
        for column, (budget, found) in within.items():
            row |= {f"budget_{column}": budget, f"mean_at_equal_{column}": found[own].mean(skipna=False)}
            row[f"spread_at_equal_{column}"] = found[own].std(ddof=1, skipna=False)
        for column, found in reached.items():
            is_told = any(by_run[run][column].notna().all() for run in runs.loc[own, "run"])
            number = int(found[own].count()) if is_told else None
            row |= {f"{column}_to_reach": found[own].mean(), f"{column}_seeds_that_reach": number}
        rows.append(row)
    holds = best is not None and is_best(best, scores, differences, lower=lower)
    known = [*notes, *what_to_know(runs, scores, differences)]
    # Whole numbers also beside a contender that has none.
    numbers = pd.DataFrame(rows).astype({f"{column}_seeds_that_reach": "Int64" for column in reached})
    return Comparison(metric, values, numbers, scores, differences, best, holds, list(runs["run"]), known)


def at_equal(runs: pd.DataFrame, rounds: dict[str, pd.DataFrame], metric: str, column: str) -> tuple[float, pd.Series]:
    """Return the least that a contender has spent in all, and each run's score within it.

    The least is that of the seed, over all contenders that have spent something; the first value is its mean over the
    seeds. The score is that of the round, among those within, that validation found best; nan where no evaluated round
    is, and where that one's test was not measured.
    """
    spent = pd.Series([rounds[name][column].astype(float).sum(skipna=False) for name in runs["run"]], index=runs.index)
    least = spent.where(spent > 0).groupby(runs[SEED]).min()
    found = []
    for name, best_by, seed in zip(runs["run"], runs["best_by"], runs[SEED], strict=True):
        own, budget = rounds[name], least[seed]
        inside = own[own[column].astype(float).cumsum() <= budget]
        validation = inside.get(f"val.{best_by}", pd.Series(dtype=float)).astype(float).dropna()
        if validation.empty:
            found.append(np.nan)
        else:
            best = validation.idxmin() if is_less_better(best_by) else validation.idxmax()
            found.append(float(inside.loc[best, f"test.{metric}"]))
    return float(least.mean()), pd.Series(found, index=runs.index, dtype=float)


def shared_rounds(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the rounds that all runs of a contender have: means of the others jump to whoever is left.

    ``curves``: a row per run and round of a measure, with ``contender``, ``run`` and ``round``.
    """
    there = curves.groupby(["contender", "round"])["run"].transform("nunique")
    return curves[there == curves.groupby("contender")["run"].transform("nunique")]


def deviation(rounds: pd.DataFrame) -> float:
    """Return the mean aggregation deviation of a run's rounds and phases; nan where there is none."""
    columns = [name for name in rounds if DEVIATION.fullmatch(name)]
    return float(rounds[columns].astype(float).stack().mean()) if columns else float("nan")


def spent_to_reach(
    runs: pd.DataFrame, rounds: dict[str, pd.DataFrame], metric: str, reach: float
) -> dict[str, pd.Series]:
    """Return the bytes up and down until validation by the metric is as good as ``reach``, and simulated seconds.

    nan where it never is, and for a run without a clock; no seconds where no run has one.
    """
    bytes_spent, seconds = [], []
    for name in runs["run"]:
        own = rounds[name]
        validation = own[f"val.{metric}"].astype(float)
        is_there = validation <= reach if is_less_better(metric) else validation >= reach
        first = own.assign(spent=own[BYTES].cumsum())[is_there].head(1)
        bytes_spent.append(float(first["spent"].sum(min_count=1)))
        seconds.append(float(first[CLOCK].sum(min_count=1)) if CLOCK in own else np.nan)
    found = {BYTES: bytes_spent} | ({CLOCK: seconds} if any(CLOCK in rounds[name] for name in runs["run"]) else {})
    return {column: pd.Series(values, index=runs.index, dtype=float) for column, values in found.items()}


def what_to_know(
    runs: pd.DataFrame, scores: pd.DataFrame, differences: Mapping[tuple[str, str], Difference]
) -> list[str]:
    """Return what a reader must be told of a table's runs."""
    notes = []
    if scores.isna().any(axis=None):
        notes.append(
            "a difference is over the seeds that both contenders have; one that lacks a seed is not taken for the best"
        )
    fewest = min((one.seeds for one in differences.values()), default=len(scores))
    if fewest < FEWEST_SEEDS:
        notes.append(f"{fewest} seeds: too few for a difference to mean anything")
    runs, names = without_solved(runs), names_of(runs)
    differing = [
        key
        for key in config_keys(runs)
        if not key.startswith(("algorithm", "seed")) and not f"config.{key}".startswith(IDLE)
        if text_of(runs[f"config.{key}"]).groupby(names).first().nunique() > 1
    ]
    if differing:
        notes.append(f"contenders differ in {', '.join(differing)} too")
    if runs["cpu"].nunique() > 1 or runs["ranks"].nunique() > 1:
        notes.append("seconds are of different machines or numbers of ranks")
    for column, what in OTHER_BITS.items():
        if (number := runs[column].nunique()) > 1:
            notes.append(f"runs are of {number} {what}")
    if (runs.groupby(SEED)["frozen"].nunique() > 1).any():
        notes.append("runs with one seed have other frozen weights")
    if runs[STEPS].isna().any():
        notes.append("bytes and client steps are hidden where privacy.observe is false")
    return notes
