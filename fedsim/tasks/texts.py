"""What texts are for: a class, with GLUE's metrics beside the usual ones, or a number.

Shapes: K clients, B texts per client and step, N texts, C classes, W weightings of texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.dataset import Dataset, Indices
from fedsim.tasks.task import Classification, Task
from fedsim.tasks.weighted import Values


@dataclass(frozen=True)
class TextClassification(Classification):
    """One of C classes for every text; ``matthews`` and ``f1_positive`` are what GLUE asks for (Wang et al., 2019)."""

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*super().metrics, "matthews", "f1_positive")

    def undecided(self, dataset: Dataset, places: Indices) -> Mapping[str, str]:
        found = dict(super().undecided(dataset, places))
        labels = dataset.labels[torch.from_numpy(places)]
        if len(labels.unique()) < 2:
            found["matthews"] = found["auroc"]
        if self.num_classes != 2 or not (labels == 1).any():
            found["f1_positive"] = f"{self.num_classes} classes" if self.num_classes != 2 else "no text of the second"
        return found

    def measure(self, rows: Tensor, labels: Tensor) -> dict[str, float]:
        """Add Matthews' correlation, and the F1 of the second of two classes, nan for other numbers of classes."""
        from sklearn.metrics import f1_score, matthews_corrcoef  # late: takes a second to import

        found = super().measure(rows, labels)
        if not torch.isfinite(rows).all():
            return found | dict.fromkeys(("matthews", "f1_positive"), float("nan"))
        truth, predicted = labels.cpu().numpy(), rows.argmax(1).numpy()
        positive = f1_score(truth, predicted, labels=[1], average=None, zero_division=0)[0]
        return found | {
            "matthews": float(matthews_corrcoef(truth, predicted)),
            "f1_positive": float(positive) if self.num_classes == 2 else float("nan"),
        }

    def of_confusions(self, confusions_WCC: Values) -> dict[str, Values]:
        true, predicted, hits = confusions_WCC.sum(2), confusions_WCC.sum(1), confusions_WCC.diagonal(0, 1, 2)
        total = true.sum(1)
        agreement = hits.sum(1) * total - (true * predicted).sum(1)
        spread = (total**2 - (true**2).sum(1)) * (total**2 - (predicted**2).sum(1))
        found = super().of_confusions(confusions_WCC)
        found["matthews"] = np.where(spread > 0, agreement / np.sqrt(np.maximum(spread, 1)), 0.0)
        positive = 2 * hits[:, 1] / np.maximum(true[:, 1] + predicted[:, 1], 1)
        found["f1_positive"] = positive if self.num_classes == 2 else np.full(len(total), np.nan)
        return found


class Regression(Task):
    """A number for every text, learned by the squared error; a row is prediction and truth."""

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("spearman", "pearson", "mae", "loss")

    @property
    def client_metrics(self) -> tuple[str, ...]:
        return ("spearman", "pearson")

    @property
    def row_size(self) -> int:
        return 2

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Each client's mean squared error (K,) of outputs (K, B, 1) against targets (K, B)."""
        return ((outputs[..., 0].float() - targets).square() * weights).sum(1)

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([outputs[..., 0].float(), targets], -1)

    def undecided(self, dataset: Dataset, places: Indices) -> Mapping[str, str]:
        assert dataset.targets is not None, "task_of looks at this"
        few = len(dataset.targets[torch.from_numpy(places)].unique()) < 2
        return dict.fromkeys(("spearman", "pearson"), "one number for all texts") if few else {}

    def predictions(self, rows: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, list[Any]]:
        del labels, names
        return {"label": rows[:, 1].tolist(), "predicted": rows[:, 0].tolist()}

    def measure(self, rows: Tensor, labels: Tensor) -> dict[str, float]:
        """Correlations of ranks and of values, mean absolute and mean squared error; nan where one is not defined."""
        from scipy.stats import rankdata  # type: ignore[import-untyped]  # no stubs

        del labels
        if not torch.isfinite(rows).all():
            return dict.fromkeys(self.metrics, float("nan"))
        values = rows.double()
        error = values[:, 0] - values[:, 1]
        ranks = torch.stack([torch.from_numpy(rankdata(column.numpy())) for column in values.T])
        return {
            "spearman": _correlation(ranks),
            "pearson": _correlation(values.T),
            "mae": float(error.abs().mean()),
            "loss": float(error.square().mean()),
        }


def _correlation(values_2N: Tensor) -> float:
    """Pearson's correlation of two rows; nan for fewer than two numbers or a constant row."""
    first, second = values_2N - values_2N.mean(1, keepdim=True)
    size = first.norm() * second.norm()
    return float(first @ second / size) if size > 0 else float("nan")
