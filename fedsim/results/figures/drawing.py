"""Figures of runs for a paper, each as PNG, PDF and SVG."""

from collections.abc import Sequence
from pathlib import Path

from fedsim.machine.files import naming_files
from fedsim.results.comparing import Comparison
from fedsim.results.figures.clients import client_figure, partition_figure
from fedsim.results.figures.curves import round_figure, score_figure
from fedsim.results.figures.style import save, styled
from fedsim.results.reading import Results

#: By the end of a file's name: who draws it, and what it takes.
FIGURES = {
    "scores": (score_figure, "rounds with the metric"),
    "rounds": (round_figure, "LoRA, privacy, or evaluate.clients"),
    "clients": (client_figure, "evaluate.clients: true"),
    "partition": (partition_figure, "partition.json"),
}


def draw(results: Results, found: Sequence[Comparison], folder: Path) -> list[str]:
    """Write the figures of each table, and return a line for each that the runs have nothing for."""
    left_out = []
    with naming_files(folder), styled():
        folder.mkdir(parents=True, exist_ok=True)
        for number, one in enumerate(found):
            for name, (make, needed) in FIGURES.items():
                stem = f"{number}_{one.metric.replace('/', '_')}_{name}"
                figure = make(results, one)
                if figure is None:
                    left_out.append(f"{stem}: not drawn, for these runs lack what it shows: {needed}")
                else:
                    save(figure, folder / stem)
    return left_out
