"""Grades: classes with an order, of which a near miss is a smaller mistake than a far one.

Shapes: K clients, B images per client and step, N images, C grades, W weightings of images.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.config.train import TrainConfig
from fedsim.data.dataset import Dataset, Indices
from fedsim.errors import UserError
from fedsim.tasks.imbalance import weights_of
from fedsim.tasks.task import Classification
from fedsim.tasks.weighted import Values, confusions


@dataclass(frozen=True)
class OrdinalLoss:
    """The sum over the C - 1 steps between grades of the cross-entropy of the question: does the grade lie above?

    It is CORAL's loss (Cao, Mirjalili and Raschka, Pattern Recognition Letters 140, 2020) with all steps of the same
    importance, at the probabilities that the softmax gives to all grades above a step; these are sums, so that no step
    contradicts another, and need no head of their own. As a score of forecasts it is the ranked ignorance of Toedter
    and Ahrens (Monthly Weather Review 140, 2012): least at the true probabilities. Of two grades it is cross-entropy.
    Times the weight of an image's grade, where there are ``class_weights``, one for each.
    """

    class_weights: tuple[float, ...] | None = None

    def __call__(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return each client's loss (K,) of scores (K, B, C), targets (K, B) and the images' weights (K, B)."""
        logs = F.log_softmax(outputs.float(), 2)[..., None, :]
        grades = torch.arange(outputs.shape[2], device=outputs.device)
        steps = grades[:-1]
        is_above = grades > steps[:, None]
        above = logs.masked_fill(~is_above, -torch.inf).logsumexp(3)
        below = logs.masked_fill(is_above, -torch.inf).logsumexp(3)
        losses = -torch.where(targets[..., None] > steps, above, below).sum(2)
        if self.class_weights is not None:
            losses = losses * outputs.new_tensor(self.class_weights, dtype=torch.float32)[targets]
        return (losses * weights).sum(1)


def ordinal_loss(dataset: Dataset, config: TrainConfig) -> OrdinalLoss:
    """Return the loss of ``train.loss: ordinal``; UserError where the classes have no order."""
    if not dataset.is_graded:
        found = f"ordinal with {dataset.name}, whose classes are no grades"
        raise UserError("train.loss", found, "cross_entropy, or a set with grades")
    return OrdinalLoss(weights_of(dataset, config))


@dataclass(frozen=True)
class Grading(Classification):
    """One of C grades, from the lowest up, learned as ``criterion`` says; how far off a grade is counts, too."""

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
