"""``launch.py sweep``: many runs, each in processes of its own, and settings chosen by trials."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsim.comm.launcher import find_place
from fedsim.comm.leave import keeping
from fedsim.config.experiment import Config
from fedsim.errors import RankError, UserError, one_line
from fedsim.machine import bound
from fedsim.machine.files import naming_files, write_json
from fedsim.machine.loading import loading
from fedsim.results.likeness import unlike
from fedsim.results.reading import client_scores, is_less_better, load, round_rows
from fedsim.results.sweeps import FILE_NAME, SCHEMA, is_sweep
from fedsim.runfolder.lock import LOCK_FILE, FolderLock
from fedsim.verbs.command_line import IS_FIRST_RANK
from fedsim.verbs.sweep_plan import Cell, Changes, Plan, log_of

#: How Python names what a traceback is about.
RAISED = re.compile(r"[\w.]*(?:Error|Exception|Interrupt)\b")
Say = Callable[[str], object]


@dataclass(frozen=True)
class Ranks:
    """How a cell's processes are started: so many ranks of this program."""

    count: int
    program: Path

    def command(self, cell: Cell) -> list[str]:
        """Return the command line of a cell, which goes on where its folder has a run."""
        words = ["run", str(cell.base), *cell.words, "--out", str(cell.folder), "--resume"]
        ranks = [] if self.count == 1 else ["--ranks", str(self.count)]
        return [sys.executable, str(self.program), *words, *ranks]


def run_sweep(file: Path, out: Path, ranks: Ranks, say: Say) -> bool:
    """Run all trials and cells that are not finished, one after the other, and return whether all are now.

    A cell that fails is told, and the others go on.
    """
    if find_place().num_ranks > 1:
        expected = "one process, which starts --ranks N for each cell; or --index I for one cell on these ranks"
        raise UserError("sweep", f"{find_place().num_ranks} ranks", expected)
    plan = Plan(file, out)
    claim(out)
    with naming_files(out):
        lock = FolderLock(out, say)
        try:
            trials = plan.trials
            record(plan, {})
            run_all(trials, ranks, say)
            chosen = choose(plan)
            cells = plan.cells(chosen)  # refuses cells that were run with another setting
            record(plan, chosen)
            for contender, setting in chosen.items():
                say(f"{contender}: validation chose {', '.join(f'{k}={v}' for k, v in setting.items())}")
            left = {trial.contender for trial in trials if not trial.has_ended}
            for contender in dict.fromkeys(trial.contender for trial in trials):
                if contender not in chosen and contender not in left:
                    say(f"{contender}: no setting that did not diverge, so none of its cells; tune needs other values")
            run_all(cells, ranks, say)
        finally:
            lock.release()
    for line in differences(out, plan):
        say(line)
    waiting = len(plan.drafts) - len(cells)
    done = sum(cell.results is not None for cell in cells)
    say(f"{done} of {len(plan.drafts)} cells done{f', {waiting} wait for their trials' if waiting else ''}")
    return done == len(plan.drafts)


def status(file: Path, out: Path) -> list[tuple[str, str]]:
    """Return every trial's and cell's number, name and state, as rows of two columns."""
    plan = Plan(file, out)
    trials = [(f"trials/{cell.name}", cell.state) for cell in plan.trials]
    cells = {cell.name: cell.state for cell in plan.cells(choose(plan))}
    rows = [*trials, *((draft.name, cells.get(draft.name, "waits for its trials")) for draft in plan.drafts)]
    done = sum(is_done(state) for state in cells.values())
    total = [("", f"{done} of {len(plan.drafts)} cells done")]
    return [*((f"{number} {name}", state) for number, (name, state) in enumerate(rows)), *total]


def cell_at(file: Path, out: Path, index: int) -> tuple[Config, Path]:
    """Return config and folder of a trial or cell by the number that ``status`` shows, for the ranks of this job."""
    plan = Plan(file, out)
    trials, chosen = plan.trials, choose(plan)
    count = len(trials) + len(plan.drafts)
    if not 0 <= index < count:
        raise UserError("--index", str(index), f"0 to {count - 1}")
    claim(out)
    cells = plan.cells(chosen)  # refuses cells that were run with another setting
    if find_place().rank == 0:
        record(plan, chosen)
    if index < len(trials):
        return trials[index].config, trials[index].folder
    name = plan.drafts[index - len(trials)].name
    for cell in cells:
        if cell.name == name:
            return cell.config, cell.folder
    raise UserError(
        f"--index {index}",
        f"cell {name}, whose settings are not chosen",
        "all its trials first, one without divergence",
    )


@keeping()
def run_at(file: Path, out: Path, index: int) -> None:
    """Run a trial or cell by its number on the ranks of this job. What it is told to stop for is in its log, too.

    A sweep knows from there which trials have diverged.
    """
    with loading():
        from fedsim import server  # late: whoever starts cells needs no torch

    config, folder = cell_at(file, out, index)
    try:
        server.run(config, folder, resume=True)
    except UserError as error:
        if IS_FIRST_RANK or isinstance(error, RankError):
            log_of(folder).parent.mkdir(parents=True, exist_ok=True)
            with log_of(folder).open("a") as log:
                log.write(f"error: {error}\n")
        raise


def is_done(state: str) -> bool:
    """Whether a state is that of a run that ended by itself."""
    return state in ("finished", "stopped early")


def claim(out: Path) -> None:
    """Make the sweep's folder; UserError for one that is in use for something else."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        used = [entry for entry in out.iterdir() if entry.suffix != ".tmp" and entry.name != LOCK_FILE]
    except OSError as error:
        raise UserError(str(out), error.strerror or str(error), "a folder that can be written") from None
    if used and not is_sweep(out):
        raise UserError(str(out), f"files, but no {FILE_NAME}", "a sweep's folder, or another --out DIR")


def record(plan: Plan, chosen: Mapping[str, Changes]) -> None:
    """Say in the folder what the sweep is made of, for those who read it."""
    trials = [{"name": cell.name, "contender": cell.contender, "setting": cell.setting} for cell in plan.trials]
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "per": plan.sweep.per,
        "cells": [asdict(draft) for draft in plan.drafts],
        "trials": trials,
        "by": None if plan.sweep.tune is None else plan.sweep.tune.by,
        "chosen": chosen,
        "diverged": [cell.name for cell in plan.trials if cell.has_diverged],
    }
    write_json(plan.out / FILE_NAME, content)


def choose(plan: Plan) -> dict[str, Changes]:
    """Return for each contender whose trials have all ended the setting with the best mean over the tuning seeds.

    What counts is the validation of a trial's best round. A setting that let the training diverge is the worst; of
    equal ones the first in the file is taken. None where every setting diverged.
    """
    chosen: dict[str, Changes] = {}
    by = None if plan.sweep.tune is None else plan.sweep.tune.by
    for contender in dict.fromkeys(trial.contender for trial in plan.trials):
        trials = [trial for trial in plan.trials if trial.contender == contender]
        if all(trial.has_ended for trial in trials):
            settings = [setting for trial in trials if (setting := trial.setting) is not None]
            means = [sum(worth(t, by) for t in trials if t.setting == setting) for setting in settings]
            if max(means) > -float("inf"):
                chosen[contender] = settings[means.index(max(means))]
    return chosen


def worth(trial: Cell, by: str | None) -> float:
    """Return a trial's best validation, with the sign with which more is better; ``by``: as the sweep's file has it."""
    results = trial.results
    if results is None or results.get("val") is None:
        return -float("inf")
    scores = {f"val.{name}": value for name, value in results["val"].items()}
    if by is not None:
        scores = client_scores(round_rows(trial.folder))
        if f"val.{by}" not in scores:
            known = ", ".join(name.removeprefix("val.") for name in scores if name.startswith("val."))
            raise UserError("tune.by", by, known or "evaluate.clients: true, in the base's config")
    metric = by or results["best_by"]
    value = scores[f"val.{metric}"]
    if value is None:
        return -float("inf")
    return -float(value) if is_less_better(metric) else float(value)


def run_all(cells: Sequence[Cell], ranks: Ranks, say: Say) -> None:
    """Run the cells that are not finished, one after the other."""
    for number, cell in enumerate(cells, start=1):
        if is_done(cell.state) or (cell.setting is not None and cell.has_diverged):
            continue
        title = f"{'cell' if cell.setting is None else 'trial'} {number} of {len(cells)}, {cell.name}"
        say(f"{title}: starts ({cell.state})")
        started, log_size = time.monotonic(), cell.log.stat().st_size if cell.log.exists() else 0
        code = run_cell(cell, ranks)
        seconds = f"{time.monotonic() - started:.0f} seconds"
        if code == 0 and is_done(cell.state):
            say(f"{title}: done in {seconds}")
        else:
            say(f"{title}: FAILED after {seconds}, exit code {code}; {last_words(cell.log, log_size)}; see {cell.log}")


def run_cell(cell: Cell, ranks: Ranks) -> int:
    """Run a cell's processes to their end, with what they show in its log, and return the exit code.

    They get SIGTERM where this process ends, however it does.
    """
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    with cell.log.open("ab") as log:
        command = [sys.executable, "-P", bound.__file__, str(os.getpid()), *ranks.command(cell)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def last_words(log: Path, start: int) -> str:
    """Return the line of a log, from a byte on, that names the cause, or its last one."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error: ")] or [line for line in lines if RAISED.match(line)]
    return one_line((told or lines[-1:] or ["nothing in its log"])[0])


def differences(out: Path, plan: Plan) -> list[str]:
    """Say whether the finished cells share data, splits and cohorts for the same seed, and which do not."""
    found = unlike(load(out).runs, list(plan.sweep.per))
    if not found:
        return ["data, splits, clients and cohorts are the same in all cells of a seed"]
    return [f"not to be compared: {line}" for line in found]
