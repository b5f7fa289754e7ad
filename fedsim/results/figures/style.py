"""What all figures share: sizes of a printed page, colours that anybody can tell apart, and the files.

Figures are 7.2 inches wide, the text width of most journals, with letters of 8 points.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsim.machine.files import write_atomic

# The palette of Okabe and Ito, distinct with any kind of colour vision; dashes, markers and hatching go on where it
# ends, and keep things apart in grey print.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
DASHES = ("-", "--", ":", "-.")
MARKERS = "osD^vPX*"
HATCHES = ("", "///", "...", "xxx")
WIDTH = 7.2
#: Pixels for slides and pages, outlines for print.
FORMATS = ("png", "pdf", "svg")
STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,  # letters that a journal's checks and a reader's search can take
    "svg.hashsalt": "fedsim",  # the same file for the same figure
}


def new_figure(height: float, width: float = WIDTH) -> Any:
    """Return an empty figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: only pictures need matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the common style inside the ``with``."""
    from matplotlib import rc_context  # late, as above

    with rc_context(STYLE):
        yield


def save(figure: Any, stem: Path) -> None:
    """Write a figure in all formats; without a date, so that the same one gives the same bytes."""
    for form in FORMATS:
        date = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}[form]
        content = io.BytesIO()
        figure.savefig(content, format=form, metadata=date)
        write_atomic(stem.with_name(f"{stem.name}.{form}"), content.getvalue())


def line_style(place: int, count: int) -> dict[str, Any]:
    """Return how the curve of the contender at this place looks, of so many points."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": DASHES[place // len(COLOURS) % len(DASHES)],
        "marker": MARKERS[place % len(MARKERS)],
        "markersize": 3.5,
        "markevery": max(1, count // 12),
    }
