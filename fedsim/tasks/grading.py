"""Grades: classes with an order, of which a near miss is a smaller mistake than a far one.

Shapes: N images, C grades, W weightings of images.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.data.dataset import Dataset, Indices
from fedsim.tasks.task import Classification
from fedsim.tasks.weighted import Values, confusions


@dataclass(frozen=True)
class Grading(Classification):
    """One of C grades, from the lowest up, learned as classes are; how far off a grade is counts, too."""

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*super().metrics, "quadratic_kappa", "mae")

    @property
    def client_metrics(self) -> tuple[str, ...]:
        return (*super().client_metrics, "quadratic_kappa")

    def undecided(self, dataset: Dataset, places: Indices) -> Mapping[str, str]:
        found = super().undecided(dataset, places)
        return {**found, "quadratic_kappa": found["auroc"]} if found else found

    def measure(self, rows: Tensor, labels: Tensor) -> dict[str, float]:
        """Add Cohen's kappa with squared weights (Cohen, 1968), and the mean distance in grades."""
        if not torch.isfinite(rows).all():
            return dict.fromkeys(self.metrics, float("nan"))
        once = np.ones((1, len(rows)), np.int64)
        table = confusions(labels.cpu().numpy(), rows.argmax(1).numpy(), self.num_classes, once)
        return super().measure(rows, labels) | {name: float(value[0]) for name, value in grading_metrics(table).items()}

    def of_confusions(self, confusions_WCC: Values) -> dict[str, Values]:
        return super().of_confusions(confusions_WCC) | grading_metrics(confusions_WCC)


def grading_metrics(confusions_WCC: Values) -> dict[str, Values]:
    """Return quadratic kappa and mean distance (W,) of confusion matrices (W, C, C).

    Kappa is 1 - the mean squared distance over that of grades drawn from truth and prediction by themselves; nan where
    both have the same grade throughout.
    """
    grades = np.arange(confusions_WCC.shape[1])
    distance = np.abs(grades[:, None] - grades)
    total = confusions_WCC.sum((1, 2))
    by_chance = confusions_WCC.sum(2)[:, :, None] * confusions_WCC.sum(1)[:, None] / total[:, None, None]
    with np.errstate(invalid="ignore"):
        ratio = (confusions_WCC * distance**2).sum((1, 2)) / (by_chance * distance**2).sum((1, 2))
    return {"quadratic_kappa": 1 - ratio, "mae": (confusions_WCC * distance).sum((1, 2)) / total}
