"""Several findings in one image, each there or not, or not known.

Shapes: K clients, B images per client and step, N images, F findings, W weightings of images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.data.dataset import Dataset, Indices
from fedsim.tasks.task import Decision, Task
from fedsim.tasks.weighted import Values, Weights, aurocs, average_precisions, by_score, mean_of_known


@dataclass(frozen=True)
class Findings(Task):
    """Which of F findings an image has. Targets (..., F) are 1 for present, 0 for absent, -1 where nobody knows.

    Outputs are scores (..., F), each finding's by itself: its probability is the logistic function of the score. A row
    holds scores and targets, since what is not known must count nowhere.
    """

    names: tuple[str, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Means over the findings, the loss, and every finding's AUROC."""
        return ("auroc", "average_precision", "accuracy", "loss", *(f"auroc/{name}" for name in self.names))

    @property
    def client_metrics(self) -> tuple[str, ...]:
        return ("auroc", "average_precision", "accuracy")

    @property
    def row_size(self) -> int:
        return 2 * len(self.names)

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return binary_cross_entropy(outputs, targets, weights)

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.cat([outputs.float(), targets.to(outputs.device).float()], -1)

    def undecided(self, dataset: Dataset, places: Indices) -> Mapping[str, str]:
        """Those of findings that all of the images have, or none, as far as it is known."""
        assert dataset.targets is not None, "task_of looks at this"
        own = dataset.targets[torch.from_numpy(places)]
        differ = ((own == 1).any(0) & (own == 0).any(0)).tolist()
        found = {
            f"auroc/{name}": "no image with it beside one without"
            for name, both in zip(self.names, differ, strict=True)
            if not both
        }
        if not any(differ):
            found |= dict.fromkeys(("auroc", "average_precision"), "no finding that one image has and another has not")
        return found

    def measure(self, rows: Tensor, labels: Tensor) -> dict[str, float]:
        """Return means over findings, all but loss in 0..1, the mean loss of an image, and each finding's AUROC.

        AUROC and average precision of a finding that all known labels agree on are nan and left out of the mean; the
        accuracy is that of the answers "probability above one half", of findings with a known label.
        """
        from sklearn.metrics import average_precision_score, roc_auc_score  # late: takes a second to import

        if not torch.isfinite(rows).all():
            return dict.fromkeys(self.metrics, float("nan"))
        areas, precisions, hits = (np.full(len(self.names), np.nan) for _ in range(3))
        for place, one in enumerate(self.decisions(rows, labels, self.names)):
            if len(one.truth):
                hits[place] = (one.answer == one.truth).mean()
            if one.truth.any() and not one.truth.all():
                areas[place] = roc_auc_score(one.truth, one.score)
                precisions[place] = average_precision_score(one.truth, one.score)
        losses = self._losses(rows)
        values = [float(mean_of_known(each[None])[0]) for each in (areas, precisions, hits, losses)]
        return dict(zip(self.metrics, [*values, *areas.tolist()], strict=True))

    def measure_many(self, rows: Tensor, labels: Tensor, weights: Weights) -> dict[str, Values]:
        if not torch.isfinite(rows).all():
            return dict.fromkeys(self.metrics, np.full(len(weights), np.nan))
        areas, precisions, hits = ([] for _ in range(3))  # type: tuple[list[Values], list[Values], list[Values]]
        for one in self.decisions(rows, labels, self.names):
            own = weights[:, one.images]
            counts = by_score(one.score, one.truth, own)
            areas.append(aurocs(*counts))
            precisions.append(average_precisions(*counts))
            hits.append(weighted_mean(one.answer == one.truth, own))
        losses = self._losses(rows)
        known = np.flatnonzero(~np.isnan(losses))
        means = [mean_of_known(np.stack(each, 1)) for each in (areas, precisions, hits)]
        return dict(zip(self.metrics, [*means, weighted_mean(losses[known], weights[:, known]), *areas], strict=True))

    def predictions(self, rows: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, list[Any]]:
        del labels
        scores, targets = rows.double().chunk(2, 1)
        truth = {
            f"label/{name}": [None if value < 0 else int(value) for value in column]
            for name, column in zip(names, targets.T.tolist(), strict=True)
        }
        chances = scores.sigmoid().T.tolist()
        return truth | {f"probability/{name}": column for name, column in zip(names, chances, strict=True)}

    def decisions(self, rows: Tensor, labels: Tensor, names: Sequence[str]) -> list[Decision]:
        """Each finding, put to the images of which it is known."""
        del labels
        scores, targets = (part.double().numpy() for part in rows.chunk(2, 1))
        found = []
        for place, name in enumerate(names):
            images = np.flatnonzero(targets[:, place] >= 0)
            score = scores[images, place]
            found.append(Decision(name, images, targets[images, place] == 1, score, score > 0))
        return found

    def _losses(self, rows: Tensor) -> Values:
        """Return each image's loss (N,), nan for one of which nothing is known."""
        scores, targets = rows.double().chunk(2, 1)
        losses = binary_cross_entropy(scores[:, None], targets[:, None], scores.new_ones(len(scores), 1))
        return torch.where((targets >= 0).any(1), losses, torch.nan).numpy()


def binary_cross_entropy(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return each client's mean (K,) over its images' losses, an image's being the mean over its known findings.

    ``outputs`` and ``targets`` (K, B, F), ``weights`` (K, B). An image of which nothing is known adds nothing.
    """
    known = targets >= 0
    outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
    losses = F.binary_cross_entropy_with_logits(outputs, targets.to(outputs).clamp(min=0), reduction="none")
    per_image = (losses * known).sum(-1) / known.sum(-1).clamp(min=1)
    return (per_image * weights).sum(1)


def weighted_mean(values: Values, weights: Weights) -> Values:
    """Return the mean (W,) of ``values`` (N,) that count ``weights`` (W, N) times; nan where none counts."""
    number = weights.sum(1)
    return np.where(number > 0, weights @ values / np.maximum(number, 1), np.nan)
