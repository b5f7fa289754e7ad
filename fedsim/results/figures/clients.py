"""How clients fare, and what they hold."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fedsim.results.comparing import Comparison, labels
from fedsim.results.figures.bars import draw_bars
from fedsim.results.figures.curves import heading
from fedsim.results.figures.style import COLOURS, WIDTH, new_figure
from fedsim.results.reading import CLIENTS, UNFINISHED, Results, best_rounds
from fedsim.storage.rows import read_object

OWN = "own.after.test."
MOST_PANELS = 3


def client_figure(results: Results, one: Comparison) -> Any:
    """Return the clients' own scores in the runs' best rounds, a box and the clients as dots; None without scores."""
    metric = own_metric(results.clients, one.metric)
    scores = own_scores(results, one, metric) if metric is not None else {}
    if not any(map(len, scores.values())):
        return None
    figure = new_figure(0.9 + 0.32 * len(scores))
    axes = figure.subplots()
    places = np.arange(len(scores))
    axes.boxplot(
        list(scores.values()),
        positions=places,
        orientation="horizontal",
        widths=0.55,
        showfliers=False,
        medianprops={"color": "black", "linewidth": 1.6},
        boxprops={"color": "0.35"},
        whiskerprops={"color": "0.35"},
        capprops={"color": "0.35"},
    )
    for place, (name, own) in zip(places, scores.items(), strict=True):
        # Neighbours in the order of their scores lie at different heights, so that dots do not hide each other.
        heights = place + 0.16 * (np.arange(len(own)) % 5 - 2) / 2
        colour = COLOURS[one.places[name] % len(COLOURS)]
        axes.plot(np.sort(own), heights, ".", color=colour, markersize=3, alpha=0.6)
    axes.set(yticks=places, yticklabels=list(scores), xlabel=f"{metric} on each client's own test images")
    axes.invert_yaxis()
    figure.suptitle(heading("clients of all seeds, best rounds", one), fontsize="medium")
    return figure


def own_metric(clients: pd.DataFrame, wanted: str) -> str | None:
    """Return the metric of the clients' own scores: the table's, or the first that there is."""
    known = [name.removeprefix(OWN) for name in clients if name.startswith(OWN)]
    wanted = wanted.removeprefix(CLIENTS)
    return wanted if wanted in known else next(iter(known), None)


def own_scores(results: Results, one: Comparison, metric: str) -> dict[str, npt.NDArray[np.float64]]:
    """Return the clients' scores by contender, of all seeds."""
    runs = results.runs[(results.runs["status"] != UNFINISHED) & results.runs["run"].isin(one.runs)]
    runs = runs.reset_index(drop=True)
    found: dict[str, list[float]] = {}
    for name, best_round, contender in zip(runs["run"], best_rounds(runs, one.metric), labels(runs), strict=True):
        rows = results.clients[(results.clients["run"] == name) & (results.clients["round"] == best_round)]
        found.setdefault(contender, []).extend(rows[f"{OWN}{metric}"].astype(float).dropna())
    return {contender: np.array(values, float) for contender, values in found.items()}


def partition_figure(results: Results, one: Comparison) -> Any:
    """Return who has how many images of which class, a panel for each of the first partitions; None without any."""
    runs = results.runs[results.runs["run"].isin(one.runs)].drop_duplicates("sha256.clients")
    tables = [(name, read_object_of(folder)) for name, folder in zip(runs["run"], runs["folder"], strict=True)]
    known = [(name, table) for name, table in tables if table is not None][:MOST_PANELS]
    if not known:
        return None
    most = max(len(table["clients"]) for _, table in known)
    figure = new_figure(min(9.0, max(2.4, 1.0 + 0.14 * most)), WIDTH)
    panels = np.atleast_1d(figure.subplots(1, len(known), sharey=True))
    for panel, (name, table) in zip(panels, known, strict=True):
        counts_KC = np.array([row["per_class"] for row in table["clients"]])
        num_clients = table.get("num_clients", len(counts_KC))  # of very many, those of every so many have a row
        draw_bars(panel, table["classes"], counts_KC, math.ceil(num_clients / len(counts_KC)))
        panel.set(xlabel="training images", title=f"seed {seed_of(results, name)}")
        panel.title.set_fontsize("small")
    panels[0].set_ylabel("client")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)), fontsize="small")
    return figure


def read_object_of(folder: str) -> dict[str, Any] | None:
    """Return a run's table of who holds what; None where it has none with classes."""
    found = read_object(Path(folder) / "partition.json")
    return found if found is not None and found.get("clients") and found.get("classes") else None


def seed_of(results: Results, name: str) -> Any:
    """Return a run's seed."""
    return results.runs.set_index("run").loc[name, "config.seed"]
