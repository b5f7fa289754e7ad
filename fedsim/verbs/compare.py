"""``launch.py compare``: runs, or the cells of sweeps, as tables."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fedsim.results.comparing import Comparison, Wish, compare
from fedsim.results.reading import Results, load
from fedsim.results.sweeps import SweepRecord, is_sweep, read_sweep
from fedsim.results.tables import csv, latex, markdown, shown, web

Format = Literal["md", "latex", "csv", "html"]


def comparisons(paths: Sequence[Path], wish: Wish) -> tuple[Results, list[Comparison]]:
    """Return runs and sweeps, and their tables; a sweep's ``per`` counts where the wish has none."""
    records = [read_sweep(path) for path in paths if is_sweep(path)]
    per = wish.per or list(dict.fromkeys(key for record in records for key in record.per))
    results = load(*paths)
    found = compare(results, replace(wish, per=per))
    notes = [note for path in paths if is_sweep(path) for note in about_sweep(path, read_sweep(path))]
    return results, [replace(one, notes=[*one.notes, *notes]) for one in found]


def written(found: Sequence[Comparison], form: Format, wish: Wish) -> str:
    """Return tables in a format."""
    if form == "csv":
        return csv(found)
    makers = {"md": markdown, "latex": latex, "html": web}
    return makers[form]([shown(one, wish) for one in found])


def about_sweep(folder: Path, record: SweepRecord) -> list[str]:
    """Return what a reader must know of a sweep: cells that are not there, and how settings were chosen."""
    missing = [name for name in record.cells if not (folder / name / "results.json").is_file()]
    notes = [f"{len(missing)} of {len(record.cells)} cells are not done: {', '.join(missing)}"] if missing else []
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
