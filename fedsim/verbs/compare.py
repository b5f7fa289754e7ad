"""``launch.py compare`` and ``report``: runs, or the cells of sweeps, as tables and as a page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fedsim.config.plain_yaml import flatten
from fedsim.errors import UserError
from fedsim.machine.files import naming_files, write_atomic
from fedsim.results.comparing import Comparison, Wish, compare
from fedsim.results.likeness import is_missing
from fedsim.results.reading import UNFINISHED, Results, load
from fedsim.results.sweeps import SweepRecord, is_sweep, read_sweep
from fedsim.results.tables import csv, latex, markdown, shown, web

Format = Literal["md", "latex", "csv", "html"]
#: Of a sweep's cells that are not done.
MOST_NAMED = 8


def comparisons(paths: Sequence[Path], wish: Wish) -> tuple[Results, list[Comparison]]:
    """Return runs and sweeps, and their tables; a sweep's ``per`` counts where the wish has none."""
    results = load(*paths)
    return results, tables(results, paths, completed(wish, paths))


def completed(wish: Wish, paths: Sequence[Path]) -> Wish:
    """Return a wish with the ``per`` of the sweeps among ``paths``, where it has none of its own."""
    records = [read_sweep(path) for path in paths if is_sweep(path)]
    return replace(wish, per=wish.per or list(dict.fromkeys(key for record in records for key in record.per)))


def tables(results: Results, paths: Sequence[Path], wish: Wish) -> list[Comparison]:
    """Return the tables of the runs behind ``paths``, with what sweeps among these have to say."""
    notes = [note for path in paths if is_sweep(path) for note in about_sweep(path, read_sweep(path), results)]
    return [replace(one, notes=[*one.notes, *notes]) for one in compare(results, wish)]


def report(paths: Sequence[Path], wish: Wish, out: Path | None) -> Path:
    """Write runs and sweeps as one HTML page, and return the file; runs at work are in it with what they have so far.

    ``out``: the file; None: report.html in the one folder of ``paths``, UserError for more.
    """
    from fedsim.results.page.content import content  # late, with jinja2: only a page needs it
    from fedsim.results.page.render import html

    if out is None and len(paths) > 1:
        raise UserError("--out", f"nothing, and {len(paths)} folders", "the file of a page on more than one")
    file = out or paths[0] / "report.html"
    wish, results = completed(wish, paths), load(*paths)
    if results.rounds.empty or "status" not in results.runs:
        raise UserError("report", "no run with a round", "at least one")
    has_ended = (results.runs["status"] != UNFINISHED).any()
    page = content(paths, results, tables(results, paths, wish) if has_ended else [], wish)
    with naming_files(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, html(page).encode())
    return file


def written(found: Sequence[Comparison], form: Format, wish: Wish) -> str:
    """Return tables in a format."""
    if form == "csv":
        return csv(found)
    makers = {"md": markdown, "latex": latex, "html": web}
    return makers[form]([shown(one, wish) for one in found])


def about_sweep(folder: Path, record: SweepRecord, results: Results) -> list[str]:
    """Return what a reader must know of a sweep: cells that are not there, and how settings were chosen."""
    missing = [name for name in record.cells if not (folder / name / "results.json").is_file()]
    notes = [f"{len(missing)} of {len(record.cells)} cells are not done: {named(missing)}"] if missing else []
    if strange := not_chosen(folder, record, results):
        notes.append(f"settings that the present trials have not chosen: {named(strange)}")
    if record.trials:
        contenders = dict.fromkeys(trial["contender"] for trial in record.trials)
        each = len(record.trials) // max(1, len(contenders))
        notes.append(
            f"settings chosen by validation on other seeds: {each} trial runs for each contender, {len(record.trials)} "
            f"in all, {len(record.diverged)} of them diverged"
        )
        for name, setting in record.chosen.items():
            notes.append(f"{name}: {', '.join(f'{key}={value}' for key, value in setting.items())}")
    return notes


def not_chosen(folder: Path, record: SweepRecord, results: Results) -> list[str]:
    """Return the cells whose contender has trials, and that were not run with the setting which these have chosen."""
    tuned = {trial["contender"] for trial in record.trials}
    found = []
    for _, run in results.runs.iterrows():
        path = Path(run["folder"])
        contender = record.contenders.get(path.name, "")
        if path.parent == folder and contender in tuned:
            setting = flatten(record.chosen.get(contender, {}), ".")
            has = {key: run[f"config.{key}"] for key in setting if f"config.{key}" in run}
            if not setting or any(setting[key] != (None if is_missing(had) else had) for key, had in has.items()):
                found.append(path.name)
    return found


def named(names: Sequence[str]) -> str:
    """Return names, or the first of many."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
