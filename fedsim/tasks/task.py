"""What a model is asked for: the loss of its outputs in training, and what its outputs are worth.

What of a model's outputs the metrics need is kept as one row of numbers per image, so that the rows of all ranks,
however the images were dealt out, make one table from which the metrics are computed once.

Shapes: K clients, B images per client and step, N images, C classes, S numbers in a row, W weightings of images.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.data.dataset import Dataset, Indices
from fedsim.errors import UserError
from fedsim.tasks.weighted import Values, Weights, aurocs, by_score, confusions, mean_of_known, metrics_of_confusions

CLASSIFICATION_METRICS = ("accuracy", "balanced_accuracy", "recall", "precision", "f1", "auroc", "loss")


@dataclass(frozen=True)
class Decision:
    """A question with the answers yes and no, put to some images: is it of this class, has it this finding.

    ``images`` (n,): their places in the table of rows. ``truth`` bool (n,); ``score`` float64 (n,): log(p / (1 - p)) of
    the probability p of yes; ``answer`` bool (n,): what is predicted.
    """

    name: str
    images: npt.NDArray[np.int64]
    truth: npt.NDArray[np.bool_]
    score: Values
    answer: npt.NDArray[np.bool_]


class Task(ABC):
    """What a data set's images are for."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """The names that ``measure`` returns; the first decides on the best round if nothing else is asked for."""

    @property
    @abstractmethod
    def client_metrics(self) -> tuple[str, ...]:
        """Those followed for every client on its own images; the drop of the first is the retrogress."""

    @property
    @abstractmethod
    def row_size(self) -> int:
        """S, how many numbers of an image ``rows`` keeps."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return each client's loss (K,) from outputs (K, B, ...), targets (K, B, ...) and weights (K, B).

        A place of weight zero must not count, whatever stands there.
        """

    @abstractmethod
    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what ``measure`` needs of images, (N, S) float32, from outputs (N, ...) and targets (N, ...)."""

    @abstractmethod
    def measure(self, rows: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the metrics of a set of images from their rows (N, S) and labels (N,), both on the CPU."""

    @abstractmethod
    def undecided(self, dataset: Dataset, places: Indices) -> Mapping[str, str]:
        """Return the metrics that say nothing about the images at ``places``, whatever is predicted, each with why."""

    @abstractmethod
    def predictions(self, rows: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, list[Any]]:
        """Return truth and prediction of every image, as columns of a table; ``names``: the classes'."""

    def decisions(self, rows: Tensor, labels: Tensor, names: Sequence[str]) -> list[Decision]:
        """Return the questions of yes and no that the task puts; none where it puts no such questions."""
        del rows, labels, names
        return []

    def measure_many(self, rows: Tensor, labels: Tensor, weights: Weights) -> dict[str, Values]:
        """Return the metrics (W,) of images that count so often, int64 (W, N); as ``measure`` of images so repeated."""
        found = [self.measure(rows[index], labels[index]) for index in map(repeated, weights)]
        return {name: np.array([one[name] for one in found]) for name in self.metrics}

    def check_decisive(self, name: str | None, dataset: Dataset) -> None:
        """UserError where the metric ``decisive`` says nothing about the validation images."""
        decisive, undecided = self.decisive(name), self.undecided(dataset, dataset.val)
        if decisive in undecided:
            others = ", ".join(metric for metric in self.metrics if metric not in undecided)
            raise UserError("evaluate.best_by", f"{decisive}, but {undecided[decisive]} in validation", others)

    def decisive(self, name: str | None) -> str:
        """Return the metric that decides on the best round: ``evaluate.best_by``, null being the task's first.

        UserError where the task has no metric of that name.
        """
        if name is not None and name not in self.metrics:
            raise UserError("evaluate.best_by", name, ", ".join(self.metrics))
        return name or self.metrics[0]


def cross_entropy(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return each client's mean cross-entropy (K,) of scores (K, B, C)."""
    losses = F.cross_entropy(outputs.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return (losses.view_as(weights) * weights).sum(1)


@dataclass(frozen=True)
class Classification(Task):
    """One of C classes for every image; a row is the image's scores. ``criterion``: see ``loss``."""

    num_classes: int
    criterion: Callable[[Tensor, Tensor, Tensor], Tensor] = cross_entropy

    @property
    def metrics(self) -> tuple[str, ...]:
        return CLASSIFICATION_METRICS

    @property
    def client_metrics(self) -> tuple[str, ...]:
        return ("f1", "auroc", "balanced_accuracy")

    @property
    def row_size(self) -> int:
        return self.num_classes

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return self.criterion(outputs, targets, weights)

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        del targets
        return outputs.float()

    def undecided(self, dataset: Dataset, places: Indices) -> Mapping[str, str]:
        present = dataset.labels[torch.from_numpy(places)].unique()
        return {"auroc": f"{len(present)} class"} if len(present) < 2 else {}

    def measure(self, rows: Tensor, labels: Tensor) -> dict[str, float]:
        return classification_metrics(rows, labels)

    def predictions(self, rows: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, list[Any]]:
        probabilities = rows.double().softmax(1)
        return {
            "label": [names[label] for label in labels.tolist()],
            "predicted": [names[label] for label in rows.argmax(1).tolist()],
            **{f"probability/{name}": probabilities[:, place].tolist() for place, name in enumerate(names)},
        }

    def decisions(self, rows: Tensor, labels: Tensor, names: Sequence[str]) -> list[Decision]:
        """One class against the rest, for each."""
        truth, predicted, images = labels.numpy(), rows.argmax(1).numpy(), np.arange(len(rows))
        return [
            Decision(name, images, truth == place, log_odds(rows, place), predicted == place)
            for place, name in enumerate(names)
        ]

    def measure_many(self, rows: Tensor, labels: Tensor, weights: Weights) -> dict[str, Values]:
        if not torch.isfinite(rows).all():
            return dict.fromkeys(self.metrics, np.full(len(weights), np.nan))
        truth, predicted = labels.numpy(), rows.argmax(1).numpy()
        areas = [aurocs(*by_score(log_odds(rows, c), truth == c, weights)) for c in range(self.num_classes)]
        losses = F.cross_entropy(rows.double(), labels, reduction="none").numpy()
        return self.of_confusions(confusions(truth, predicted, self.num_classes, weights)) | {
            "auroc": mean_of_known(np.stack(areas, 1)),
            "loss": weights @ losses / weights.sum(1),
        }

    def of_confusions(self, confusions_WCC: Values) -> dict[str, Values]:
        """Return the metrics (W,) that confusion matrices (W, C, C) are enough for."""
        return metrics_of_confusions(confusions_WCC)


def classification_metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return loss, accuracy, balanced accuracy, macro recall, precision, F1 and AUROC, all but loss in 0..1.

    ``scores`` (N, C) before the softmax, ``labels`` (N,). Macro averages run over the classes that occur in
    labels or predictions; balanced accuracy and AUROC (one against the rest) over those that occur in labels.
    AUROC ranks by ``log_odds``; it is nan where the labels hold a single class. Scores that are not finite make
    every metric nan.
    """
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score  # late: takes a second to import

    if not torch.isfinite(scores).all():
        return dict.fromkeys(CLASSIFICATION_METRICS, float("nan"))
    truth = labels.cpu().numpy()
    predicted = scores.argmax(1).numpy()
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)
    present = np.unique(truth)
    hits = [float((predicted[truth == c] == c).mean()) for c in present]
    areas = [roc_auc_score(truth == c, log_odds(scores, c)) for c in present] if len(present) > 1 else []
    values = (
        float((predicted == truth).mean()),
        float(np.mean(hits)),
        float(recall),
        float(precision),
        float(f1),
        float(np.mean(areas)) if areas else float("nan"),
        float(F.cross_entropy(scores.double(), labels.cpu())),
    )
    return dict(zip(CLASSIFICATION_METRICS, values, strict=True))


def log_odds(scores: Tensor, label: int) -> npt.NDArray[np.float64]:
    """Return log(p / (1 - p)) (N,) of a class from scores (N, C) before the softmax.

    It orders images as the probability p does, which in float64 is exactly 1 where a class leads by 37 or more.
    """
    others = scores.double().index_fill(1, torch.tensor([label]), -torch.inf)
    return (scores[:, label].double() - others.logsumexp(1)).numpy()


def repeated(weights: npt.NDArray[np.int64]) -> Tensor:
    """Return the places (M,) of images that count ``weights`` (N,) times."""
    return torch.from_numpy(np.repeat(np.arange(len(weights)), weights))
