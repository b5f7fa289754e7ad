"""Scores over rounds, bytes and seconds, a curve per contender with a band over its seeds."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedsim.errors import UserError
from fedsim.machine.files import naming_files, write_atomic
from fedsim.results.comparing import BYTES, Comparison, labels
from fedsim.results.reading import UNFINISHED, Results

# The palette of Okabe and Ito, distinct with any kind of colour vision; dashes and markers go on where it ends, and
# keep the curves apart in grey print.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
DASHES = ("-", "--", ":", "-.")
MARKERS = "osD^vPX*"
AXES = {"round": "round", BYTES: "MB up and down", "seconds": "seconds"}


def draw(results: Results, found: Sequence[Comparison], folder: Path) -> None:
    """Write a PNG for each table: the test's score over rounds, over bytes, and over seconds."""
    with naming_files(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for number, one in enumerate(found):
            write_atomic(folder / f"{number}_{one.metric.replace('/', '_')}.png", picture(results, one))


def picture(results: Results, one: Comparison) -> bytes:
    """Return a table's curves as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: only pictures need matplotlib
    from matplotlib.figure import Figure

    curves = curves_of(results, one)
    figure = Figure(figsize=(12, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    handles: dict[str, Any] = {}
    for axes, (column, title) in zip(figure.subplots(1, len(AXES), sharey=True), AXES.items(), strict=True):
        for place, (name, part) in enumerate(curves.groupby("contender", sort=False)):
            by_round = part.groupby("round")
            x, mean, deviation = by_round[column].mean(), by_round["score"].mean(), by_round["score"].std(ddof=1)
            style = {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place // len(COLOURS) % len(DASHES)]}
            (handles[str(name)],) = axes.plot(x, mean, marker=MARKERS[place % len(MARKERS)], markersize=4, **style)
            band = deviation.fillna(0.0)
            axes.fill_between(x, mean - band, mean + band, color=style["color"], alpha=0.15, linewidth=0)
        axes.set_xlabel(title)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel(f"{one.metric}, test")
    settings = ", ".join(f"{key} {value}" for key, value in one.values.items())
    figure.suptitle(f"{settings}: mean and standard deviation over seeds".removeprefix(": "))
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize="small")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def curves_of(results: Results, one: Comparison) -> pd.DataFrame:
    """Return the evaluated rounds of a table's runs: contender, round, MB and seconds so far, score."""
    runs = results.runs[results.runs["status"] != UNFINISHED]
    runs = runs[runs["run"].isin(one.runs)].reset_index(drop=True)
    rows = []
    for name, contender in zip(runs["run"], labels(runs), strict=True):
        own = results.rounds[results.rounds["run"] == name]
        spent = (own["bytes_up"] + own["bytes_down"]).cumsum() / 1e6
        score = own[f"test.{one.metric}"].astype(float)
        table = pd.DataFrame({"round": own["round"], BYTES: spent, "seconds": own["seconds"].cumsum(), "score": score})
        rows.append(table.assign(contender=contender)[np.isfinite(score)])
    if not rows or all(part.empty for part in rows):
        raise UserError("--figures", f"no round with {one.metric}", "a metric that was measured")
    return pd.concat(rows)
