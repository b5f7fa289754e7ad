"""All that the page says, as plain data: what runs are compared, how it went, and how to repeat it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fedsim.config.plain_yaml import flatten, read_mapping
from fedsim.results.comparing import Comparison, Wish, both_ways, groups, require_keys
from fedsim.results.page.charts import MEGABYTE, charts, short
from fedsim.results.page.clients import clients_of
from fedsim.results.page.grids import Grid, from_shown, grid, shared_and_differing
from fedsim.results.reading import DIGESTS, UNFINISHED, Results, client_scores, is_less_better, round_rows
from fedsim.results.statistics import better_than
from fedsim.results.sweeps import TRIALS, is_sweep, read_sweep
from fedsim.results.tables import legend, shown, spread
from fedsim.storage.rows import read_object

#: Of a run's environment what is about one start, or names folders of one machine.
OF_A_START = ("command", "earlier_starts")


@dataclass(frozen=True)
class Table:
    """A comparison. ``verdict``: in a sentence who is best; ``notes``: what to know; ``legend``: what columns are.

    ``has_pairs``: whether there are contenders and seeds to be compared.
    """

    title: str
    grid: Grid
    verdict: str
    notes: list[str]
    legend: list[str]
    has_pairs: bool


@dataclass(frozen=True)
class Part:
    """Runs that are compared with each other: tables, and curves ready for JSON."""

    title: str
    tables: list[Table]
    charts: dict[str, Any]


@dataclass(frozen=True)
class Page:
    """What the template shows; each ``shared`` has keys and values that all runs have, beside a table of the others."""

    title: str
    facts: list[tuple[str, str]]
    remarks: list[str]
    parts: list[Part]
    runs: Grid
    trials: Grid | None
    clients: dict[str, Any]
    config: tuple[list[tuple[str, str]], Grid | None]
    environment: tuple[list[tuple[str, str]], Grid | None]
    digests: tuple[list[tuple[str, str]], Grid | None]


def content(paths: Sequence[Path], results: Results, found: Sequence[Comparison], wish: Wish) -> Page:
    """Return the page of runs and sweeps, of which ``found`` are the tables; ``wish`` with the keys of ``per``."""
    runs, parts = results.runs, parts_of(results, found, wish)
    folders = {name: Path(folder) for name, folder in zip(runs["run"], runs["folder"], strict=True)}
    configs = {name: flatten(read_mapping(folder / "config.yaml"), ".") for name, folder in folders.items()}
    hidden = "config.privacy.epsilon" in runs or "config.privacy.noise_multiplier" in runs
    return Page(
        title=titled([path.resolve().name for path in paths]),
        facts=facts(runs, found, configs),
        remarks=["What is shown of single clients and as diagnostics is the simulator's view; no server could know it."]
        * hidden,
        parts=parts,
        runs=runs_grid(runs),
        trials=trials_grid([path for path in paths if is_sweep(path)]),
        clients=clients_of(results),
        config=shared_and_differing(without_names(configs)),
        environment=shared_and_differing({name: environment(folder) for name, folder in folders.items()}),
        digests=shared_and_differing({name: digests(folder) for name, folder in folders.items()}),
    )


def titled(names: Sequence[str]) -> str:
    """Return what a page on such folders is called."""
    return ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]} and {len(names) - 2} more"


def parts_of(results: Results, found: Sequence[Comparison], wish: Wish) -> list[Part]:
    """Return the runs of each value of ``per`` with their tables; where no run has ended, what there is so far."""
    ended = results.runs[results.runs["status"] != UNFINISHED]
    runs = (results.runs if ended.empty else ended).reset_index(drop=True)
    require_keys(runs, wish.per)
    parts = []
    for values, own in groups(runs, wish.per):
        named = dict(zip(wish.per, values, strict=True))
        tables = [one for one in found if one.values == named]
        metrics = list(dict.fromkeys(one.metric for one in tables)) or list(own.get("best_by", pd.Series()).dropna())
        title = ", ".join(f"{key} {value}" for key, value in named.items())
        drawn = charts(own, results.rounds, metrics)
        drawn["seeds"] = [seeds_of(one, drawn["names"]) for one in tables]
        parts.append(Part(title, [table(one, wish) for one in tables], drawn))
    return parts


def table(one: Comparison, wish: Wish) -> Table:
    """Return a comparison as the page shows it."""
    as_text = shown(one, wish)
    return Table(one.metric, from_shown(as_text), verdict(one), one.notes, legend(one, wish), min(one.scores.shape) > 1)


def seeds_of(one: Comparison, names: Sequence[str]) -> dict[str, Any]:
    """Return the scores behind a table: a row per contender in the order of ``names``, in it a score per seed."""
    scores = [[short(value) for value in one.scores[name]] for name in names]
    return {"metric": one.metric, "seeds": [int(seed) for seed in one.scores.index], "scores": scores}


def verdict(one: Comparison) -> str:
    """Say who is best, and whether that holds."""
    if one.best is None:
        return f"No contender has {one.metric}."
    best = one.numbers[one.numbers["contender"] == one.best].iloc[0]
    score = f"{one.metric} {spread(best['mean'], best['spread'])} on the test"
    if len(one.numbers) == 1:
        return f"{one.best} has {score}."
    if one.holds:
        return f"{one.best} is best, with {score}. Its difference to each other contender holds."
    ahead = better_than(one.best, one.differences, lower=is_less_better(one.metric))
    if ahead:
        return f"{one.best} has the best mean of all seeds, with {score}. Better over shared seeds: {', '.join(ahead)}."
    return f"{one.best} has the best mean, with {score}. That it is better than all others is not shown."


def facts(
    runs: pd.DataFrame, found: Sequence[Comparison], configs: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Return what stands on top of the page: how much of what."""
    ended = int((runs["status"] != UNFINISHED).sum())
    contenders = {name for one in found for name in one.scores.columns}
    rows = [("runs", f"{len(runs)}" if ended == len(runs) else f"{ended} of {len(runs)} have ended")]
    rows += [("contenders", str(len(contenders)))] * (len(contenders) > 1)
    for name, key in (
        ("seeds", "seed"),
        ("data", "data.name"),
        ("model", "model.name"),
        ("clients", "clients.count"),
        ("rounds", "rounds"),
    ):
        values = list(dict.fromkeys(str(config[key]) for config in configs.values() if key in config))
        if values:
            rows.append((name, ", ".join(values[:6]) + (" ..." if len(values) > 6 else "")))
    return rows


def runs_grid(runs: pd.DataFrame) -> Grid:
    """Return a row per run."""
    best_by = list(dict.fromkeys(runs["best_by"].dropna())) if "best_by" in runs else []
    columns = {"method": "config.algorithm.name", "seed": "config.seed", "status": "status", "rounds": "rounds"}
    columns |= {"best round": "best_round"}
    columns |= {f"{split} {metric}": f"{split}.{metric}" for metric in best_by for split in ("val", "test")}
    columns |= {"epsilon": "epsilon", "seconds": "seconds", "client steps": "client_steps"}
    columns = {name: column for name, column in columns.items() if column in runs and runs[column].notna().any()}
    header = ["run", *columns, "MB in all", "MB that a client holds", "MB that a client sends a round"]
    rows = [
        [row["run"], *(plain(row[column]) for column in columns.values()), *megabytes(row)]
        for _, row in runs.assign(bytes=both_ways(runs)).iterrows()
    ]
    kept = [place for place in range(len(header)) if any(row[place] is not None for row in rows)]
    return grid([header[place] for place in kept], [[row[place] for place in kept] for row in rows])


def megabytes(row: pd.Series) -> list[float | None]:
    """Return what a run has sent both ways, what a client holds, and what it sends in a round; None: not known."""
    known = [f"costs.{kind}" for kind in ("submodel", "full_model") if pd.notna(row.get(f"costs.{kind}.bytes"))]
    kind = known[0] if known else "costs"
    numbers = (row["bytes"], row.get(f"{kind}.bytes"), row.get(f"{kind}.bytes_sent"))
    return [None if pd.isna(value) else float(value) / MEGABYTE for value in numbers]


def plain(value: Any) -> Any:
    """Return a value of a table of pandas as Python's own."""
    return None if pd.isna(value) else value.item() if hasattr(value, "item") else value


def trials_grid(sweeps: Sequence[Path]) -> Grid | None:
    """Return a row per trial run that settings were chosen by; None where none was tuned."""
    rows = []
    for sweep in sweeps:
        record = read_sweep(sweep)
        for trial in record.trials:
            folder = sweep / TRIALS / trial["name"]
            results = read_object(folder / "results.json") or {}
            by = record.by or results.get("best_by")
            scores = client_scores(round_rows(folder)) if record.by else flatten({"val": results.get("val") or {}}, ".")
            validation = scores.get(f"val.{by}")
            state = "diverged" if trial["name"] in record.diverged else results.get("status", "not done")
            chosen = "chosen" if record.chosen.get(trial["contender"]) == trial["setting"] else ""
            setting = ", ".join(f"{key}={value}" for key, value in trial["setting"].items())
            rows.append([trial["name"], trial["contender"], setting, state, validation, chosen])
    return grid(["trial", "contender", "setting", "status", "best validation", ""], rows) if rows else None


def without_names(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return configs without the name, which tells runs apart and changes nothing."""
    return {run: {key: value for key, value in config.items() if key != "name"} for run, config in configs.items()}


def environment(folder: Path) -> dict[str, Any]:
    """Return what a run's start was like."""
    found = read_object(folder / "environment.json") or {}
    about = {key: value for key, value in found.items() if key not in OF_A_START and value is not None}
    return {key: value for key, value in flatten(about, ".").items() if not key.endswith(".each")}


def digests(folder: Path) -> dict[str, Any]:
    """Return the sha256 of what a run was made of and of what it has come to."""
    own = (read_object(folder / "partition.json") or {}).get("sha256") or {}
    state = (read_object(folder / "results.json") or {}).get("state_sha256")
    return {key: own[key] for key in DIGESTS if key in own} | ({} if state is None else {"state": state})
