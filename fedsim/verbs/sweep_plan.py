"""The cells of a sweep: what each is called, what it changes, and how far its run is."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsim.comm.exact import DIVERGED
from fedsim.config.experiment import Config
from fedsim.config.mistakes import nearest, show
from fedsim.config.plain_yaml import COMMAND_LINE
from fedsim.config.sweep import Grid, SweepConfig, TuneConfig, load_sweep
from fedsim.errors import UserError
from fedsim.machine.files import parse_json
from fedsim.results.sweeps import TRIALS
from fedsim.runfolder.runlog import require_same_run
from fedsim.runfolder.trust import load_own
from fedsim.storage.rows import read_rows

MAX_NAME = 150
LOG_BYTES = 100_000
Changes = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    ``words``: what the command line changes of the config ``base``, which makes ``config``. ``contender``: the name
    without the seed. ``setting``: what a trial tries.
    """

    name: str
    folder: Path
    base: Path
    words: list[str]
    contender: str
    config: Config
    setting: Changes | None = None

    @property
    def log(self) -> Path:
        """What the cell's processes have shown."""
        return log_of(self.folder)

    @property
    def results(self) -> dict[str, Any] | None:
        """What the run has left when it ended; None before."""
        file = self.folder / "results.json"
        if not file.is_file():
            return None
        try:
            found: dict[str, Any] = parse_json(file.read_text())
            return {"status": found["status"], **found}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(str(file), f"no results ({error})", "what a run leaves; remove it and --resume") from None

    @property
    def has_diverged(self) -> bool:
        """Whether the run ended since its training diverged, as its log says and its folder is there."""
        if self.results is not None or not (self.log.is_file() and self.folder.is_dir()):
            return False
        lines = self.log.read_bytes()[-LOG_BYTES:].decode(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return bool(errors) and DIVERGED in errors[-1]

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing to wait for: the run came to its end, or it diverged."""
        return self.results is not None or self.has_diverged

    @property
    def state(self) -> str:
        """How far the run is, in words."""
        if (found := self.results) is not None:
            return str(found["status"])
        if self.has_diverged:
            return "diverged"
        rows = read_rows(self.folder / "metrics.jsonl")
        if rows:
            return f"after round {rows[-1]['round']} of {self.config.rounds}"
        return "begun" if (self.folder / "config.yaml").is_file() else "missing"

    def require_own_folder(self, file: Path) -> None:
        """UserError where the cell's folder holds a run with another config."""
        recorded = self.folder / "config.yaml"
        if recorded.is_file():
            try:
                require_same_run(self.config, recorded)
            except UserError as error:
                key = error.where.removeprefix("--resume: ")
                expected = f"{error.expected}; or another --out DIR"
                raise UserError(f"{file}, cell {self.name}: {key}", error.found, expected) from None


def log_of(folder: Path) -> Path:
    """The log of the cell whose run is in ``folder``."""
    return folder.with_name(f"{folder.name}.log")


@dataclass(frozen=True)
class Draft:
    """A cell before its config is read."""

    name: str
    contender: str
    changes: Changes


class Plan:
    """All cells and trials of a sweep's file, each with its settled config; UserError for the first mistake."""

    def __init__(self, file: Path, out: Path) -> None:
        self.file, self.out = file, out
        self.sweep: SweepConfig = load_sweep(file)
        self.drafts = list(drafts(self.sweep))
        self._check_names("list, grid", "cells", [draft.name for draft in self.drafts])
        # Without what is tuned: enough to know every cell's method, and to find mistakes before anything runs.
        self._untuned = {
            draft.name: self._settled(draft.name, draft.changes, out / draft.name) for draft in self.drafts
        }

    @cached_property
    def trials(self) -> list[Cell]:
        """The runs that settings are chosen by; equally many for every contender."""
        tune = self.sweep.tune
        if tune is None:
            return []
        self._check_tuning(tune)
        contenders = {draft.contender: draft for draft in self.drafts}
        found = []
        for contender, draft in contenders.items():
            for setting in settings(self._grid_of(tune, self._untuned[draft.name].algorithm.name)):
                for seed in tune.seeds:
                    name = join(contender, *words_of(setting), f"seed{seed}")
                    changes = {**draft.changes, **setting, "seed": seed}
                    found.append(self._cell(Draft(name, contender, changes), self.out / TRIALS / name, setting))
        self._check_names("tune", "trials", [trial.name for trial in found])
        return found

    def cells(self, chosen: Mapping[str, Changes]) -> list[Cell]:
        """The runs that are compared, of those contenders alone whose settings are chosen, where there is tuning."""
        found = []
        for draft in self.drafts:
            if self.sweep.tune is None or draft.contender in chosen:
                tuned = replace(draft, changes={**draft.changes, **chosen.get(draft.contender, {})})
                found.append(self._cell(tuned, self.out / draft.name))
        return found

    def _check_names(self, where: str, what: str, names: Sequence[str]) -> None:
        for name in names:
            if names.count(name) > 1:
                expected = "values that differ, or name in the entries of list"
                raise UserError(f"{self.file}: {where}", f"two {what} named {name}", expected)

    def _check_tuning(self, tune: TuneConfig) -> None:
        """UserError where tuning would see a seed that counts, or methods would have more trials than others."""
        for name, config in self._untuned.items():
            if config.seed in tune.seeds:
                expected = f"other seeds than the cells': {config.seed} is that of {name}"
                raise UserError(f"{self.file}: tune.seeds", show(list(tune.seeds)), expected)
            if tune.by is not None and not config.evaluate.clients:
                found = f"{tune.by}, but evaluate.clients: false in {name}"
                raise UserError(f"{self.file}: tune.by", found, "evaluate.clients: true, so that it is measured")
        methods = list(dict.fromkeys(config.algorithm.name for config in self._untuned.values()))
        for name in tune.methods:
            if name not in methods:
                raise UserError(f"{self.file}: tune.methods", name, nearest(name, methods))
        if tune.grid and all(method in tune.methods for method in methods):
            raise UserError(f"{self.file}: tune.grid", "a grid, but every method has its own", "no such key")
        counts = {method: len(list(settings(self._grid_of(tune, method)))) for method in methods}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{count} for {method}" for method, count in counts.items())
            raise UserError(f"{self.file}: tune", f"numbers of trials: {found}", "equally many for every method")

    def _grid_of(self, tune: TuneConfig, method: str) -> Grid:
        grid = tune.methods.get(method, tune.grid)
        if not grid:
            raise UserError(f"{self.file}: tune.methods", f"no grid for {method}", "one for every method, or tune.grid")
        return grid

    def _cell(self, draft: Draft, folder: Path, setting: Changes | None = None) -> Cell:
        base, config = self._base, self._settled(draft.name, draft.changes, folder)
        cell = Cell(draft.name, folder, base, words_for(draft.name, draft.changes), draft.contender, config, setting)
        cell.require_own_folder(self.file)
        return cell

    @property
    def _base(self) -> Path:
        return self.file.parent / self.sweep.base

    def _settled(self, name: str, changes: Changes, folder: Path) -> Config:
        if len(name) > MAX_NAME:
            expected = f"at most {MAX_NAME}: a short name in the entries of list"
            raise UserError(f"{self.file}: cell {name[:40]}...", f"a name of {len(name)} signs", expected)
        try:
            return load_own(self._base, words_for(name, changes), folder)
        except UserError as error:
            where = error.where.replace(f"{COMMAND_LINE}: ", f"{self.file}, cell {name}: ")
            raise UserError(where, error.found, error.expected) from None


def drafts(sweep: SweepConfig) -> Iterator[Draft]:
    """All entries of the list with all combinations of the grid, named after their values, the seed last."""
    for entry in sweep.list:
        for setting in settings(sweep.grid):
            changes = {**entry, **setting}
            named = {**setting, "name": entry["name"]} if "name" in entry else changes
            words = words_of({key: value for key, value in named.items() if key != "seed"})
            contender = join(*words) or "base"
            seed = [f"seed{changes['seed']}"] if "seed" in changes else []
            yield Draft(join(contender, *seed), contender, changes)


def settings(grid: Mapping[str, Sequence[Any]]) -> Iterator[Changes]:
    """All combinations of a grid's values."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def words_for(name: str, changes: Changes) -> list[str]:
    """Return what the command line changes of the base config for a cell."""
    return [f"{key}={json.dumps(value)}" for key, value in {**changes, "name": name}.items()]


def words_of(changes: Mapping[str, Any]) -> list[str]:
    """Return a word for each change, such as deer, alpha0.1, fedprox-mu0.01; the name first."""
    ordered = sorted(changes, key=lambda key: key != "name")
    return [word(key, changes[key]) for key in ordered]


def word(key: str, value: Any) -> str:
    """Return one change as a word."""
    last = key.rpartition(".")[2]
    if isinstance(value, Mapping):
        return "-".join([*([] if "name" in value else [last]), *words_of(value)])
    text = value if isinstance(value, str) else json.dumps(value)
    return text if last in ("name", "algorithm") else f"{last}{text}"


def join(*words: str) -> str:
    """Return words as a name that a folder can have."""
    cleaned = (re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") for text in words)
    return "_".join(text for text in cleaned if text)
