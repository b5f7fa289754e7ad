"""Run folders as pandas DataFrames; docs/run_folder.md says what the columns hold."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.config.plain_yaml import flatten, read_mapping
from fedsim.config.recorded import completed
from fedsim.config.train import LESS_IS_BETTER
from fedsim.errors import UserError
from fedsim.results.sweeps import is_sweep, read_sweep, run_folders
from fedsim.storage.rows import metric_rows, read_object, read_rows

if TYPE_CHECKING:
    import pandas as pd

#: Of names and meaning of the columns; a change that readers would stumble over raises it.
SCHEMA = 1
UNFINISHED = "unfinished"
#: What stands before a metric that is the mean over a round's clients, each one's own model on its own images.
CLIENTS = "clients."
CLIENT_MEAN = re.compile(r"diagnostics\.clients\.(val|test)\.(.+)\.after\.mean")
DIGESTS = ("data", "validation", "test", "clients", "cohorts")


@dataclass(frozen=True)
class Results:
    """Some runs. ``run`` stands first in each table and tells whose row it is.

    ``runs``: a row per run: folder, name in a sweep's list, status, best round, its scores, sums over the rounds, and
    the config's keys behind ``config.``. ``rounds``: a row per round: metrics.jsonl and
    timings.jsonl. ``clients``: clients.jsonl.
    """

    runs: "pd.DataFrame"
    rounds: "pd.DataFrame"
    clients: "pd.DataFrame"
    schema: int = SCHEMA


def load(*paths: str | os.PathLike[str]) -> Results:
    """Read run folders, or the folders of sweeps, whose cells are then the runs; also while they are written.

    A run is called by its folder, behind as much of the path as tells it from the others. UserError for a folder that
    is none, and for what cannot be read in one.
    """
    import pandas as pd  # here: a run draws pictures by this package, and makes no table

    folders = run_folders([Path(path) for path in paths])
    names = short_names(folders)
    sweeps = [Path(path) for path in paths if is_sweep(Path(path))]
    listed = {sweep / cell: name for sweep in sweeps for cell, name in read_sweep(sweep).listed.items()}
    runs, rounds, clients = [], [], []
    for folder, name in zip(folders, names, strict=True):
        own = [{"run": name, **row} for row in round_rows(folder)]
        runs.append({"run": name, "folder": str(folder), "listed": listed.get(folder), **run_row(folder, own)})
        rounds += own
        clients += [{"run": name, **flatten(row, ".")} for row in read_rows(folder / "clients.jsonl")]
    first = {"run": pd.Series(dtype=str)}
    return Results(*(pd.DataFrame(rows or first) for rows in (runs, rounds, clients)))


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of paths, so many that all differ."""
    parts = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    twice = next(folder for folder in folders if folders.count(folder) > 1)
    raise UserError(str(twice), "the folder twice", "each run once")


def round_rows(folder: Path) -> list[dict[str, Any]]:
    """Return a run's rounds, what is nested flattened to dotted names; seconds of phases and clients left out."""
    timings = {row["round"]: row for row in read_rows(folder / "timings.jsonl")}
    rows = []
    for row in metric_rows(folder):
        timing = {key: value for key, value in timings.get(row["round"], {}).items() if key != "phases"}
        measured = {key: row.get(key) or {} for key in ("val", "test", "diagnostics", "clock")}
        plain = {key: value for key, value in row.items() if key not in (*measured, "simulation_only")}
        scores = {k: v for k, v in flatten(measured, ".").items() if v != {}}
        means = {f"{found[1]}.{CLIENTS}{found[2]}": v for k, v in scores.items() if (found := CLIENT_MEAN.fullmatch(k))}
        rows.append({**plain, **scores, **means, **timing})
    return rows


def client_scores(rounds: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Return the clients' means, each metric's of the round in which that of the validation is best, and that round."""
    found: dict[str, float | None] = {}
    columns = (name for row in rounds for name in row if name.startswith(f"val.{CLIENTS}"))
    for metric in dict.fromkeys(name.removeprefix("val.") for name in columns):
        validation = {place: row.get(f"val.{metric}") for place, row in enumerate(rounds)}
        known = {place: value for place, value in validation.items() if value is not None}
        if known:
            best = (min if is_less_better(metric) else max)(known, key=known.__getitem__)
            found |= {f"{split}.{metric}": rounds[best].get(f"{split}.{metric}") for split in ("val", "test")}
            found[f"best_round.{metric}"] = rounds[best]["round"]
    return found


def best_rounds(runs: "pd.DataFrame", metric: str) -> "pd.Series":
    """Return each run's best round: the run's own, or for a metric of the clients that metric's."""
    return runs[f"best_round.{metric}" if metric.startswith(CLIENTS) else "best_round"]


def is_less_better(metric: str) -> bool:
    """Whether less of a metric is better, of the clients' means too."""
    return metric.removeprefix(CLIENTS) in LESS_IS_BETTER


def run_row(folder: Path, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a run's own row, but for its name."""
    results = read_object(folder / "results.json") or {"status": UNFINISHED}
    digests = (read_object(folder / "partition.json") or {}).get("sha256", {})
    environment = read_object(folder / "environment.json") or {}
    words = read_mapping(folder / "config.yaml")
    if results.get("val") and "best_by" not in results:  # of an earlier version
        results["best_by"] = (words.get("evaluate") or {}).get("best_by") or next(iter(results["val"]))
    costs = {key: value for key, value in flatten({"costs": results.pop("costs", {})}, ".").items() if value != {}}
    return {
        **{key: value for key, value in flatten(results, ".").items() if value != {}},
        **client_scores(rounds),
        **costs,
        "rounds": len(rounds),
        **{key: total(rounds, key) for key in ("bytes_up", "bytes_down", "client_steps", "seconds")},
        **{f"sha256.{key}": digests.get(key) for key in DIGESTS},
        "ranks": environment.get("ranks"),
        "cpu": (environment.get("hardware") or {}).get("cpu"),
        "commit": (environment.get("git") or {}).get("commit"),
        "device": device_of(environment),
        "threads": environment.get("threads_per_rank"),
        "frozen": environment.get("frozen_sha256"),
        **{f"config.{key}": value for key, value in flatten(completed(words), ".").items()},
    }


def device_of(environment: Mapping[str, Any]) -> str | None:
    """Return the kind of device that a run was computed on: cpu, or the GPU's name; None where it is not known."""
    kind = str(environment.get("device") or "").partition(":")[0]
    gpus = (environment.get("hardware") or {}).get("gpus")
    return gpus[0] if kind == "cuda" and gpus else kind or None


def total(rounds: Sequence[dict[str, Any]], key: str) -> float | None:
    """Return a column's sum over the rounds; None where a round lacks it."""
    values = [row.get(key) for row in rounds]
    return None if not values or None in values else sum(value for value in values if value is not None)
