"""Who has how many images of each class. A run draws this by itself, so nothing here loads pandas."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.results.figures.style import COLOURS, HATCHES

MAX_TICKS = 40


def draw_bars(axes: Any, names: Sequence[str], counts_KC: npt.NDArray[np.int64], every: int = 1) -> None:
    """Draw one horizontal bar per client, stacked by class; the x axis counts images.

    ``every``: the counts are of one client in so many.
    """
    from matplotlib.ticker import MaxNLocator  # late: only pictures need matplotlib

    num_clients = len(counts_KC) * every
    left = np.zeros(len(counts_KC))
    for label, name in enumerate(names):
        axes.barh(
            np.arange(0, num_clients, every),
            counts_KC[:, label],
            left=left,
            height=0.8 if num_clients <= MAX_TICKS else float(every),
            color=COLOURS[label % len(COLOURS)],
            hatch=HATCHES[label // len(COLOURS) % len(HATCHES)],
            edgecolor="white",
            linewidth=0.5 if num_clients <= MAX_TICKS else 0.0,
            label=name,
        )
        left += counts_KC[:, label]
    axes.set_ylim(num_clients - 0.5, -0.5)
    axes.set_yticks(range(0, num_clients, 1 if num_clients <= MAX_TICKS else 5 * math.ceil(num_clients / 200)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins="auto"))
    axes.spines[["top", "right"]].set_visible(False)
