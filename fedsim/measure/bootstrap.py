"""How far a metric would be off had other patients been drawn: percentile intervals of a bootstrap (Efron, 1979).

What belongs together, such as the images of one patient, is drawn together.

Shapes: N images, W resamples at once.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fedsim.data.dataset import Indices
from fedsim.tasks.task import Task
from fedsim.tasks.weighted import Values, Weights

RESAMPLES = 1000
LEVEL = 0.95
#: Weights that are in memory at once.
MOST_WEIGHTS = 2**22


def intervals(
    task: Task, rows: Tensor, labels: Tensor, clusters: Indices, stream: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Return the ends of each metric's interval; nan where one cannot be told.

    ``rows`` (N, S) and ``labels`` (N,) as ``Task.measure`` takes them, ``clusters`` (N,): what is drawn together.
    Resamples in which a metric is no number are left out of its interval. One cluster alone has none.
    """
    _, cluster = np.unique(clusters, return_inverse=True)
    num_clusters = int(cluster.max(initial=-1)) + 1
    if num_clusters < 2:
        return dict.fromkeys(task.metrics, (float("nan"), float("nan")))
    parts: list[dict[str, Values]] = []
    at_once = max(1, MOST_WEIGHTS // len(cluster))
    for start in range(0, RESAMPLES, at_once):
        weights = resample(num_clusters, min(at_once, RESAMPLES - start), stream)[:, cluster]
        parts.append(task.measure_many(rows, labels, weights))
    return {name: _middle(np.concatenate([part[name] for part in parts])) for name in task.metrics}


def resample(num_clusters: int, num_resamples: int, stream: np.random.Generator) -> Weights:
    """Return how often each cluster is drawn, as many draws as clusters, int64 (W, clusters)."""
    drawn = stream.integers(num_clusters, size=(num_resamples, num_clusters))
    drawn += num_clusters * np.arange(num_resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=num_resamples * num_clusters)
    return counts.reshape(num_resamples, num_clusters).astype(np.int64)


def measure_groups(task: Task, rows: Tensor, labels: Tensor, groups: Sequence[Indices]) -> list[dict[str, float]]:
    """Return the metrics of each group of images, which are places in ``rows`` (N, S); no group is empty."""
    found: list[dict[str, float]] = []
    at_once = max(1, MOST_WEIGHTS // max(1, len(rows)))
    for start in range(0, len(groups), at_once):
        some = groups[start : start + at_once]
        weights = np.zeros((len(some), len(rows)), np.int64)
        for row, places in zip(weights, some, strict=True):
            row[places] = 1
        values = task.measure_many(rows, labels, weights)
        found += [{name: float(values[name][row]) for name in task.metrics} for row in range(len(some))]
    return found


def _middle(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
