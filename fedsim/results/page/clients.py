"""What the page shows of single clients: whose images they are, and a curve for each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fedsim.errors import UserError
from fedsim.results.page.charts import short, thinned
from fedsim.results.reading import Results
from fedsim.storage.rows import read_object

#: Clients shown of a run, those with the most images, and numbers in the curves of all runs together.
MOST_CLIENTS = 200
MOST_NUMBERS = 300_000
NO_MEASURES = ("run", "round", "client", "n", "weight")
#: Of a client's scores those in the table; the others have curves alone.
LATEST = "own.after.test."
MOMENTS = {"before": "before communication", "after": "after communication"}


def clients_of(results: Results) -> dict[str, Any]:
    """Return each run's clients and their curves, ready for JSON.

    ``runs``: a mapping per run, see ``of_run``; ``left_out``: names of runs for which the page has no more room.
    """
    by_run = {str(name): part for name, part in results.clients.groupby("run", sort=False)}
    shown: list[dict[str, Any]] = []
    left_out: list[str] = []
    spent = 0
    for name, folder in zip(results.runs["run"], results.runs["folder"], strict=True):
        partition = partition_of(Path(folder) / "partition.json")
        rows = by_run.get(name, pd.DataFrame({"client": []}))
        if not partition["rows"] and rows.empty:
            continue
        one = of_run(name, partition, rows)
        size = sum(2 * len(curve[0]) for curves in one["curves"].values() for curve in curves.values())
        if shown and spent + size > MOST_NUMBERS:
            left_out.append(name)
        else:
            spent += size
            shown.append(one)
    return {"runs": shown, "left_out": left_out}


def of_run(name: str, partition: Mapping[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
    """Return a run's clients.

    ``classes``: names; ``clients``: [client, images, images of each class], chosen from ``listed`` of all ``of``;
    ``measures``: titles by name, ``columns`` those of the table; ``curves``: by measure and client the rounds and the
    values there, the means over the round's phases.
    """
    counts = partition["rows"] or [[int(client), int(n), []] for client, n in sizes(rows)]
    kept = sorted(counts, key=lambda row: -row[1])[:MOST_CLIENTS]
    own = rows[rows["client"].isin([row[0] for row in kept])]
    measures = [column for column in own.select_dtypes(include="number") if column not in NO_MEASURES]
    curves: dict[str, dict[str, list[list[float | None]]]] = {}
    for measure in measures:
        known = own.dropna(subset=[measure])
        means = known.groupby(["client", "round"])[measure].mean()
        if not means.empty:
            curves[measure] = {str(client): curve(part) for client, part in means.groupby(level="client")}
    return {
        "run": name,
        "classes": partition["classes"],
        "clients": sorted(kept),
        "listed": len(counts),
        "of": partition["of"] or len(counts),
        "measures": {measure: title(measure) for measure in curves},
        "columns": [measure for measure in curves if "." not in measure or measure.startswith(LATEST)],
        "curves": curves,
    }


def sizes(rows: pd.DataFrame) -> list[tuple[Any, Any]]:
    """Return the clients of a run without a partition, and their numbers of images."""
    return [] if rows.empty else list(rows.groupby("client")["n"].first().items())


def curve(part: pd.Series) -> list[list[float | None]]:
    """Return rounds and values of one client."""
    places = thinned(len(part))
    rounds = part.index.get_level_values("round")
    return [[int(rounds[place]) for place in places], [short(part.iloc[place]) for place in places]]


def partition_of(file: Path) -> dict[str, Any]:
    """Return ``classes`` and ``rows`` of a partition.json, empty where there is none; UserError for damage.

    ``of``: the number of clients, of which very many have no row each; 0 where it does not say.
    """
    content = read_object(file) or {}
    try:
        classes = [str(name) for name in content.get("classes", [])]
        rows = [
            [int(row["client"]), int(row["n"]), [int(number) for number in row["per_class"]]]
            for row in content.get("clients", [])
        ]
        of = int(content.get("num_clients", 0))
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(str(file), f"no table of clients ({error!r})", "what a run writes") from None
    return {"classes": classes, "rows": rows, "of": of}


def title(measure: str) -> str:
    """Return what a client's measure is called: train_loss, or own.after.test.f1."""
    parts = measure.split(".")
    if len(parts) != 4 or parts[1] not in MOMENTS:
        return measure.replace(".", " ").replace("_", " ")
    model, moment, split, metric = parts
    which = "" if model == "own" else f", {model} model"
    return f"{split} {metric.replace('_', ' ')} {MOMENTS[moment]}{which}"
