"""What a person sees of a run: a line per round, a progress bar on a terminal, and a table at the end."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fedsim.machine.output import Output

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
    """Rank 0's view of a run of ``num_rounds`` rounds on standard output."""

    def __init__(self, num_rounds: int) -> None:
        self._num_rounds = num_rounds
        self._output = Output()
        self.console = make_console(self._output)
        self._bar: Progress | None = None

    def message(self, text: str) -> None:
        """Show one line that stays; in a file it begins with the time."""
        if self._output.isatty():
            self.console.print(Text(text), soft_wrap=True)
        else:
            print(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}", file=self._output, flush=True)

    def start_round(self, round: int) -> None:
        """Show that ``round``, counted from 1, begins."""
        if self._bar is None and self._output.isatty():
            columns = (TextColumn("rounds"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TextColumn("{task.description}", markup=False), console=self.console)
            self._bar.add_task("", total=self._num_rounds)
            self._bar.start()
        self._show(round - 1, "")

    def progress(self, text: str) -> None:
        """Show what goes on inside the round; lines in a file leave it out."""
        self._show(None, text)

    def end_round(self, row: Mapping[str, Any], seconds: float) -> None:
        """Show a finished round's metrics."""
        self._show(row["round"], "")
        self.message(f"round {row['round']}/{self._num_rounds}  {summary(row)}  seconds {seconds:.2f}")

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
    return "  ".join(parts)


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
