"""What the page draws over rounds, bytes and seconds: of every contender the mean over its seeds, and their spread."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fedsim.results.comparing import DEVIATION, both_ways, labels, shared_rounds

#: By what a chart is about the columns of ``Results.rounds`` that it offers, in this order.
TOPICS = {
    "scores": re.compile(r"(?:test|val)\..+|train_loss"),
    "diagnostics": re.compile(r"diagnostics\.(?!.*(?:_per_layer|\bdeciles\b)).+"),
    "privacy": re.compile(r"epsilon"),
    "costs": re.compile(r"bytes_up|bytes_down|client_steps|seconds|evaluation_seconds|wire_bytes_\w+"),
}
#: What stands first among the measures of a topic.
LEADING = re.compile(r"test\..+|.*aggregation_deviation|bytes_up")
#: The mean over a round's phases, as ``compare`` has it: methods call their phases differently.
OF_ALL_PHASES = "diagnostics.aggregation_deviation"
#: What scores are drawn over; all else over rounds alone.
AXES = ("round", "bytes", "seconds")
MEGABYTE = 1e6
#: Rounds of a curve; of more every n-th is drawn, and the last.
MOST_POINTS = 300


def charts(runs: pd.DataFrame, rounds: pd.DataFrame, first: Sequence[str]) -> dict[str, Any]:
    """Return the curves of runs that belong together, ready for JSON.

    ``names``: the contenders; ``topics``: by topic names of measures with their titles, those in ``first`` before all
    others; ``curves``: by measure a curve per contender that has any of it, with ``name`` an index in ``names``.
    """
    named = dict(zip(runs["run"], labels(runs), strict=True))
    own = rounds[rounds["run"].isin(list(named))]
    phases = [column for column in own if DEVIATION.fullmatch(column)]
    if len(phases) > 1:
        own = own.assign(**{OF_ALL_PHASES: own[phases].astype(float).mean(axis=1)})
    names = list(dict.fromkeys(named.values()))
    by_run = own.groupby("run", sort=False)
    spent = both_ways(own).groupby(own["run"], sort=False).cumsum() / MEGABYTE
    spans = {"at_bytes": spent, "at_seconds": seconds_so_far(own, by_run)}
    table, numbers = own.assign(contender=own["run"].map(named), **spans), list(own.select_dtypes(include="number"))
    topics: dict[str, dict[str, str]] = {}
    curves: dict[str, list[dict[str, Any]]] = {}
    for topic, pattern in TOPICS.items():
        found = {}
        for column in in_order([name for name in numbers if pattern.fullmatch(name)], first):
            drawn = curves_of(table, column, names, AXES if topic == "scores" else AXES[:1])
            if drawn:
                curves[column], found[column] = drawn, title(column)
        if found:
            topics[topic] = found
    return {"names": names, "topics": topics, "curves": curves}


def seconds_so_far(own: pd.DataFrame, by_run: Any) -> Any:
    """Return the seconds since a run's start, nan where a round lacks its own."""
    return by_run["seconds"].cumsum() if "seconds" in own else np.nan


def in_order(columns: Sequence[str], first: Sequence[str]) -> list[str]:
    """Return the scores that decide before all others, and then what leads."""
    scores = [name for metric in first for name in (f"test.{metric}", f"val.{metric}") if name in columns]
    return [
        *scores,
        *sorted(set(columns) - set(scores), key=lambda name: (not LEADING.fullmatch(name), len(name), name)),
    ]


def curves_of(table: pd.DataFrame, column: str, names: Sequence[str], axes: Sequence[str]) -> list[dict[str, Any]]:
    """Return a measure's curve of each contender: lists over the rounds in which all its runs have it."""
    scale = MEGABYTE if "bytes" in column else 1.0
    known = shared_rounds(table[np.isfinite(table[column].astype(float))])
    found = []
    for name, part in known.groupby("contender", sort=False):
        by_round = part.groupby("round")
        columns = {
            **{axis: by_round[axis if axis == "round" else f"at_{axis}"].mean() for axis in axes},
            "mean": by_round[column].mean() / scale,
            "spread": by_round[column].std(ddof=1) / scale,
            "seeds": by_round[column].count(),
        }
        places = thinned(len(columns["round"]))
        lists = {key: [short(values.iloc[place]) for place in places] for key, values in columns.items()}
        found.append({"name": names.index(str(name)), **lists})
    return sorted(found, key=lambda curve: curve["name"])


def thinned(number: int) -> list[int]:
    """Return which of so many points are drawn."""
    step = -(-number // MOST_POINTS)
    return sorted({*range(0, number, step), number - 1})


def short(value: Any) -> float | None:
    """Return a number with the digits that a chart can show; None for what is none."""
    return float(f"{float(value):.6g}") if np.isfinite(value) else None


def title(column: str) -> str:
    """Return what a column is called on the page."""
    unit = ", MB" if "bytes" in column else ""
    words = column.removeprefix("diagnostics.").replace("bytes_up", "sent").replace("bytes_down", "received")
    return words.replace("wire_bytes_", "on the wire, ").replace(".", " ").replace("_", " ") + unit
