"""What a person sees of a run: a line per round, a progress bar on a terminal, and a table at the end."""

import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from fedsim.machine.output import Output
from fedsim.runfolder.messages import stamped

METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "recall": "macro recall",
    "precision": "precision",
    "f1": "F1",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "quadratic_kappa": "quadratic kappa",
    "matthews": "Matthews",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "mae": "absolute error",
    "dice": "Dice",
    "iou": "IoU",
    "dice_all": "Dice with background",
    "iou_all": "IoU with background",
}
SPLITS = {"val": "validation", "test": "test"}
FILE_WIDTH = 110


class Screen:
    """Rank 0's view of a run of ``num_rounds`` rounds on standard output.

    ``best_by``: the metric that a line of a terminal shows first; None: the first of ``METRICS`` that is there.
    """

    def __init__(self, num_rounds: int, best_by: str | None = None) -> None:
        self._num_rounds = num_rounds
        self._best_by = best_by
        self._seconds: list[float] = []
        self._output = Output()
        self.console = make_console(self._output)
        self._bar: Progress | None = None

    def message(self, text: str) -> None:
        """Show one line that stays; in a file it begins with the time. A terminal breaks it between words."""
        if self._output.isatty():
            self.console.print(Text(text))
        else:
            print(stamped(text), file=self._output, flush=True)

    def start_round(self, round: int) -> None:
        """Show that ``round``, counted from 1, begins."""
        if self._bar is None and self._output.isatty():
            times = (TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
            doing = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1))
            self._bar = Progress(BarColumn(10), MofNCompleteColumn(), *times, doing, console=self.console, expand=True)
            self._bar.add_task("", total=self._num_rounds, left="")
            self._bar.start()
        self._show(round - 1, "")

    def progress(self, text: str) -> None:
        """Show what goes on inside the round; lines in a file leave it out."""
        self._show(None, text)

    def end_round(self, row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """Show a finished round's metrics and seconds: all of them in a file, and what fits a line of a terminal."""
        self._show(row["round"], "")
        self._seconds.append(timing["seconds"])
        start, seconds = f"round {row['round']}/{self._num_rounds}", timing["seconds"]
        evaluation = timing.get("evaluation_seconds")
        if not self._output.isatty():
            end = "" if evaluation is None else f"  evaluation_seconds {evaluation:.2f}"
            self.message(f"{start}  {summary(row)}  seconds {seconds:.2f}{end}")
            return
        end = f"{seconds:.1f} s" if evaluation is None else f"{seconds:.1f} s, {evaluation:.1f} evaluating"
        self.message(fitting(start, short_parts(row, self._best_by), end, self.console.width))
        if self._bar is not None:
            left = round(fmean(self._seconds) * (self._num_rounds - row["round"]))
            self._bar.update(self._bar.task_ids[0], left=f"{timedelta(seconds=left)} left" if left else "")

    def close(self) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, completed: int | None, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=completed, description=text)


def make_console(output: Any = None) -> Console:
    """A console on ``output``, or standard output; a file gets lines wide enough for the tables."""
    output = output or sys.stdout
    return Console(file=output, highlight=False, width=None if output.isatty() else FILE_WIDTH)


def summary(row: Mapping[str, Any]) -> str:
    """The numbers of a metrics row on one line."""
    parts = [f"train_loss {number(row['train_loss'])}"]
    validation = row.get("val") or {}
    parts += [f"val_{name} {number(validation.get(name))}" for name in ("loss", *METRICS) if name in validation]
    parts += [f"clock_seconds {row['clock']['seconds']:.6g}"] if "clock" in row else []
    return "  ".join(parts)


def short_parts(row: Mapping[str, Any], best_by: str | None) -> list[str]:
    """The numbers of a metrics row in words, the weightiest first."""
    validation = row.get("val") or {}
    names = sorted((name for name in METRICS if name in validation), key=lambda name: name != best_by)
    measured = [f"{METRICS[name]} {number(validation[name])}" for name in names]
    losses = [f"val loss {number(validation['loss'])}"] if "loss" in validation else []
    return [f"loss {number(row['train_loss'])}", *measured[:1], *losses, *measured[1:]]


def fitting(start: str, parts: Sequence[str], end: str, width: int) -> str:
    """One line of at most ``width`` signs, if start and end allow it: as many of the parts as fit, in their order."""
    line = start
    for part in parts:
        if len(line) + len(part) + len(end) + 4 > width:
            break
        line += f"  {part}"
    return f"{line}  {end}"


def number(value: float | None) -> str:
    """Four decimals, or a dash for what was not measured or is no number."""
    return "-" if value is None or value != value else f"{value:.4f}"


def metrics_table(metrics: Mapping[str, Any], title: str) -> Table:
    """A row per split of ``metrics`` ({"val": {...}, "test": {...}}), a column per metric that was measured."""
    table = Table("", title=title, title_justify="left")
    measured = {split: metrics.get(split) or {} for split in SPLITS}
    names = [name for name in METRICS if any(name in found for found in measured.values())]
    for name in names:
        table.add_column(METRICS[name], justify="right")
    for split, label in SPLITS.items():
        table.add_row(label, *(number(measured[split].get(name)) for name in names))
    return table
