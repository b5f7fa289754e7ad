"""Curves with a band over the seeds, one per contender: scores over what they cost, and what else rounds tell."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fedsim.results.comparing import BYTES, CLOCK, DEVIATION, Comparison, both_ways, labels, shared_rounds
from fedsim.results.figures.style import line_style, new_figure
from fedsim.results.reading import UNFINISHED, Results

AXES = {"round": "round", BYTES: "MB up and down", "seconds": "seconds", CLOCK: "simulated seconds"}
#: What is drawn over the rounds, where runs have it.
RETROGRESS, DEVIATIONS, EPSILON = "retrogress, test", "aggregation deviation", "epsilon"


def score_figure(results: Results, one: Comparison) -> Any:
    """Return the test's score over rounds, bytes, seconds, and simulated ones where runs have them.

    None where a contender's seeds have it in no round together.
    """
    curves = known(pd.concat([own.assign(contender=name) for name, own in evaluated(results, one)]), "score")
    if curves.empty:
        return None
    panels = {title: (column, "score") for column, title in AXES.items() if curves[column].notna().any()}
    return drawn(curves, panels, f"{one.metric}, test", one)


def round_figure(results: Results, one: Comparison) -> Any:
    """Return retrogress, aggregation deviation and epsilon over the rounds, as far as runs have them; or None."""
    parts = []
    for name, own in by_run(results, one):
        deviations = [column for column in own if DEVIATION.fullmatch(column)]
        found = own[["round"]].copy()
        found[RETROGRESS] = own.get("diagnostics.retrogress.test", np.nan)
        found[DEVIATIONS] = own[deviations].astype(float).mean(axis=1) if deviations else np.nan
        found[EPSILON] = own.get("epsilon", np.nan)
        parts.append(found.astype(float).assign(contender=name, run=own["run"]))
    curves = pd.concat(parts)
    panels = {name: ("round", name) for name in (RETROGRESS, DEVIATIONS, EPSILON) if len(known(curves, name))}
    return drawn(curves, panels, None, one) if panels else None


def by_run(results: Results, one: Comparison) -> list[tuple[str, pd.DataFrame]]:
    """Return contender and rounds of each of a table's runs."""
    runs = results.runs[(results.runs["status"] != UNFINISHED) & results.runs["run"].isin(one.runs)]
    runs = runs.reset_index(drop=True)
    rounds = dict(iter(results.rounds.groupby("run", sort=False)))
    return [(contender, rounds[name]) for name, contender in zip(runs["run"], labels(runs), strict=True)]


def evaluated(results: Results, one: Comparison) -> list[tuple[str, pd.DataFrame]]:
    """Return contender and evaluated rounds of each run: round, MB, seconds and simulated ones so far, score."""
    found = []
    for name, own in by_run(results, one):
        spent = both_ways(own).cumsum() / 1e6
        score = own[f"test.{one.metric}"].astype(float)
        so_far = {BYTES: spent, "seconds": own["seconds"].cumsum(), CLOCK: own.get(CLOCK, np.nan)}
        found.append((name, own[["run", "round"]].assign(**so_far, score=score)[np.isfinite(score)]))
    return found


def known(curves: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the rows that a curve of a column is drawn from."""
    return shared_rounds(curves[curves[column].notna()])


def drawn(curves: pd.DataFrame, panels: Mapping[str, tuple[str, str]], y_title: str | None, one: Comparison) -> Any:
    """Draw panels, each by the columns of its axes; a panel's name is that of its x axis, or of y where all share x."""
    figure = new_figure(2.7)
    handles: dict[str, Any] = {}
    axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=y_title is not None))
    for name, part in curves.groupby("contender", sort=False):
        for panel, (x_column, y_column) in zip(axes, panels.values(), strict=True):
            by_round = known(part, y_column).groupby("round")
            x, mean, deviation = by_round[x_column].mean(), by_round[y_column].mean(), by_round[y_column].std(ddof=1)
            style = line_style(one.places[str(name)], len(x))
            (handles[str(name)],) = panel.plot(x, mean, **style)
            band = deviation.fillna(0.0)
            panel.fill_between(x, mean - band, mean + band, color=style["color"], alpha=0.2, linewidth=0)
    for panel, title in zip(axes, panels, strict=True):
        panel.set_xlabel(title if y_title is not None else "round")
        panel.set_ylabel(title if y_title is None else "")
    if y_title is not None:
        axes[0].set_ylabel(y_title)
    figure.suptitle(heading("mean and standard deviation over seeds", one), fontsize="medium")
    columns = min(4, len(handles))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize="small")
    return figure


def heading(text: str, one: Comparison) -> str:
    """Return a title that begins with the table's values."""
    return ", ".join([*(f"{key} {value}" for key, value in one.values.items()), text])
