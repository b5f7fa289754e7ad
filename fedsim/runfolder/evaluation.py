"""The files of an evaluation, and the short form of it that is shown.

JSON has all, CSV what goes into a spreadsheet or a plot. Numbers are written so that they read back equal; what is no
number is null in JSON and empty in CSV.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fedsim.machine.files import csv_text, write_atomic, write_json
from fedsim.runfolder.screen import METRICS, SPLITS, number

Rows = Iterator[Sequence[Any]]
MOST_ROWS = 12
NAME_WIDTH = 20
SHOWN_SPECIFICITY = 0.9


def write_evaluation(folder: Path, report: Mapping[str, Any]) -> list[str]:
    """Write the files of a report, see docs/evaluation.md, and return their names. The folder is made where missing."""
    folder.mkdir(parents=True, exist_ok=True)
    sets, crossed = report["sets"], report.get("cross_site", [])
    large = ("curves", "predictions")
    short = [{key: value for key, value in one.items() if key not in large} for one in sets]
    write_json(folder / "evaluation.json", {**report, "sets": short})
    for name in large:
        write_json(folder / f"{name}.json", {one["set"]: one[name] for one in sets})
    tables = {
        "metrics": metric_rows(sets),
        "confusion": confusion_rows(sets, report["class_names"]),
        "classes": class_rows(sets),
        "operating_points": point_rows(sets),
        "calibration": calibration_rows(sets),
        "roc": curve_rows(sets, "roc"),
        "precision_recall": curve_rows(sets, "precision_recall"),
        "predictions": prediction_rows(sets),
        "cross_site": crossed_rows(crossed),
    }
    written = ["evaluation.json", *(f"{name}.json" for name in large)]
    for name, rows in tables.items():
        content = list(rows)
        path = folder / f"{name}.csv"
        if len(content) > 1:
            write_atomic(path, csv_text(content).encode())
            written.append(path.name)
        else:  # of an evaluation before, which had more to say
            path.unlink(missing_ok=True)
    return written


def metric_rows(sets: Sequence[Mapping[str, Any]]) -> Rows:
    """A row per set, group and metric."""
    yield ("set", "kind", "name", "images", "drawn", "metric", "value", "low", "high")
    for one in sets:
        for group in one["scores"]:
            start = (one["set"], group["kind"], group["name"], group["images"], group["drawn"])
            for metric, found in group["metrics"].items():
                yield (*start, metric, found["value"], found.get("low"), found.get("high"))


def confusion_rows(sets: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Rows:
    """A row per class of the truth, a column per class of the prediction."""
    yield ("set", "label", *(f"predicted/{name}" for name in names))
    for one in sets:
        for name, counts in zip(names, one.get("confusion", ()), strict=False):
            yield (one["set"], name, *counts)


CLASS_COLUMNS = (
    "images",
    "positives",
    "auroc",
    "average_precision",
    "sensitivity",
    "specificity",
    "positive_predictive_value",
    "negative_predictive_value",
)


def class_rows(sets: Sequence[Mapping[str, Any]]) -> Rows:
    """A row per set and class."""
    yield ("set", "class", *CLASS_COLUMNS, "expected_calibration_error")
    for one in sets:
        for name, found in one["classes"].items():
            error = found["calibration"]["expected_calibration_error"]
            yield (one["set"], name, *(found[column] for column in CLASS_COLUMNS), error)


def point_rows(sets: Sequence[Mapping[str, Any]]) -> Rows:
    """A row per set, class and threshold."""
    columns = ("specificity_asked", "threshold_from", "threshold", "sensitivity", "specificity")
    yield ("set", "class", *columns)
    for one in sets:
        for name, found in one["classes"].items():
            for point in found["operating_points"]:
                yield (one["set"], name, *(point[column] for column in columns))


def calibration_rows(sets: Sequence[Mapping[str, Any]]) -> Rows:
    """A row per set, class and bin; without a class those of the predicted class."""
    columns = ("from", "to", "images", "said", "came")
    yield ("set", "class", *columns)
    for one in sets:
        tables = {name: found["calibration"] for name, found in one["classes"].items()}
        for name, found in {"": one.get("calibration", {"points": []}), **tables}.items():
            for point in found["points"]:
                yield (one["set"], name, *(point[column] for column in columns))


def curve_rows(sets: Sequence[Mapping[str, Any]], kind: str) -> Rows:
    """A row per set, class and point of a curve."""
    header: tuple[str, ...] | None = None
    for one in sets:
        for name, found in one["curves"].items():
            if kind in found:
                if header is None:
                    header = tuple(found[kind])
                    yield ("set", "class", *header)
                for point in zip(*found[kind].values(), strict=True):
                    yield (one["set"], name, *point)


def prediction_rows(sets: Sequence[Mapping[str, Any]]) -> Rows:
    """A row per set and image."""
    columns = list(dict.fromkeys(column for one in sets for column in one["predictions"]))
    yield ("set", *columns)
    for one in sets:
        table = one["predictions"]
        for row in range(one["images"]):
            yield (one["set"], *(table[column][row] if column in table else None for column in columns))


def crossed_rows(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """A row per model, place and metric."""
    yield ("model", "home", "kind", "place", "images", "metric", "value")
    for row in rows:
        start = (row["model"], row.get("home"), row["kind"], row["place"], row["images"])
        for metric, value in row["metrics"].items():
            yield (*start, metric, value)


def shown(report: Mapping[str, Any], title: str) -> Iterator[Table | str]:
    """What of a report fits a screen of 80 columns: its metrics, and of the last set the sites and the classes."""
    sets = report["sets"]
    yield overall_table(sets, title)
    last = sets[-1]
    for table in (site_table(last), question_table(last)):
        if table.row_count:
            yield table
    about = report["intervals"]
    yield f"in brackets: {about['level']:.0%} of {about['resamples']:,} bootstraps over {last['drawn_together']}"
    if crossed := report.get("cross_site"):
        yield travel(crossed)


def overall_table(sets: Sequence[Mapping[str, Any]], title: str) -> Table:
    """A row per metric, a column per set."""
    table = Table("", title=title, title_justify="left")
    whole = {one["set"]: one["scores"][0] for one in sets}
    for name, group in whole.items():
        table.add_column(f"{SPLITS.get(name, name)}, {group['images']:,}", justify="right")
    for metric, label in METRICS.items():
        if any(metric in group["metrics"] for group in whole.values()):
            table.add_row(label, *(with_interval(group["metrics"][metric]) for group in whole.values()))
    return table


def site_table(one: Mapping[str, Any]) -> Table:
    """A row per site, with the first metrics that decide."""
    sites = [group for group in one["scores"] if group["kind"] == "site"]
    metrics = [name for name in METRICS if sites and name in sites[0]["metrics"]]
    preferred = [name for name in ("balanced_accuracy", "dice", "spearman", "auroc") if name in metrics][:2]
    table = Table(title=f"{SPLITS.get(one['set'], one['set'])} by site", title_justify="left")
    add_columns(table, "site", "number", *(METRICS[metric] for metric in preferred))
    for group in sites[:MOST_ROWS]:
        values = [with_interval(group["metrics"][metric]) for metric in preferred]
        table.add_row(group["name"], f"{group['images']:,}", *values)
    return table


def question_table(one: Mapping[str, Any]) -> Table:
    """A row per class: how many there are, AUROC, and the sensitivity at a fixed specificity."""
    title = f"{SPLITS.get(one['set'], one['set'])} by class; sensitivity where specificity is {SHOWN_SPECIFICITY:.0%}"
    table = Table(title=title, title_justify="left")
    add_columns(table, "class", "number", "AUROC", "sensitivity")
    for name, found in list(one["classes"].items())[: MOST_ROWS + 3]:
        points = (p for p in found["operating_points"] if p["threshold_from"] == one["set"])
        point = next((p["sensitivity"] for p in points if p["specificity_asked"] == SHOWN_SPECIFICITY), None)
        table.add_row(name, f"{found['positives']:,}", number(found["auroc"]), number(point))
    return table


def add_columns(table: Table, first: str, *others: str) -> None:
    """Add a column of names and columns of numbers, all together narrow enough for 80 signs."""
    table.add_column(first, max_width=NAME_WIDTH, overflow="ellipsis", no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", max_width=NAME_WIDTH, no_wrap=True)


def with_interval(found: Mapping[str, float]) -> str:
    """A value, and the ends of its interval where there are any."""
    low, high = (found.get(end, float("nan")) for end in ("low", "high"))
    return number(found["value"]) + (f" ({low:.3f}-{high:.3f})" if low == low else "")


def travel(crossed: Sequence[Mapping[str, Any]]) -> str:
    """One line on the clients' own models, at home and elsewhere."""
    metric = next(iter(crossed[0]["metrics"]))
    means = []
    for home in (True, False):
        values = [row["metrics"][metric] for row in crossed if row.get("home") is home]
        known = [value for value in values if value == value]
        means.append(number(sum(known) / len(known)) if known else "-")
    return f"clients' own models, mean {METRICS.get(metric, metric)}: {means[0]} at home, {means[1]} elsewhere"
