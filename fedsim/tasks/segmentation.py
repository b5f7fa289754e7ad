"""The task of images with masks: a class for every pixel.

Shapes: K clients, B images per client and step, N images, C classes, H and W pixels. With ``weights``: W
weightings of images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.data.dataset import Dataset, Indices
from fedsim.tasks.task import Task
from fedsim.tasks.weighted import Values, Weights, mean_of_known

SMOOTH = 1e-5  # of the Dice loss, as in HarmoFL's code


@dataclass(frozen=True)
class Segmentation(Task):
    """One of C classes for every pixel; class 0 is the background.

    Outputs are class scores (..., C, H, W), targets the masks (..., H, W). A row holds how many pixels of each class
    prediction and mask share, how many the prediction has, how many the mask has, and the image's loss.
    """

    class_names: tuple[str, ...]
    criterion: Literal["cross_entropy", "dice", "dice_ce"] = "dice_ce"
    absent_class: Literal["skip", "zero"] = "skip"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Means over the foreground's classes, over all classes, each class, and the loss."""
        return (*self.client_metrics, "loss")

    @property
    def client_metrics(self) -> tuple[str, ...]:
        per_class = (f"{metric}/{name}" for metric in ("dice", "iou") for name in self.class_names)
        return ("dice", "iou", "dice_all", "iou_all", *per_class)

    @property
    def row_size(self) -> int:
        return 3 * len(self.class_names) + 1

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Cross-entropy of the pixels, Dice loss, or half of their sum, which is HarmoFL's."""
        if self.criterion == "cross_entropy":
            return pixel_cross_entropy(outputs, targets, weights)
        if self.criterion == "dice":
            return dice_loss(outputs, targets, weights)
        return (pixel_cross_entropy(outputs, targets, weights) + dice_loss(outputs, targets, weights)) / 2

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        classes = torch.arange(len(self.class_names), device=outputs.device).view(-1, 1, 1)
        predicted, true = outputs.argmax(1)[:, None] == classes, targets[:, None] == classes
        counts = torch.cat([pixels.sum((2, 3)) for pixels in (predicted & true, predicted, true)], dim=1)
        # Each image as a batch of its own, so that its loss does not depend on the company it is evaluated in.
        losses = self.loss(outputs[:, None], targets[:, None], counts.new_ones(len(counts), 1))
        is_finite = torch.isfinite(outputs).flatten(1).all(1)
        return torch.cat([counts.float(), torch.where(is_finite, losses, torch.nan)[:, None]], dim=1)

    def undecided(self, dataset: Dataset, places: Indices) -> Mapping[str, str]:
        """Those of classes that no mask has."""
        assert dataset.masks is not None, "task_of looks at this"
        present = dataset.masks[torch.from_numpy(places)].unique().tolist()
        absent = {
            name: "no mask of that class" for number, name in enumerate(self.class_names) if number not in present
        }
        means = {} if max(present, default=0) else {"dice": "no mask with foreground", "iou": "no mask with foreground"}
        return means | {f"{metric}/{name}": why for metric in ("dice", "iou") for name, why in absent.items()}

    def measure(self, rows: Tensor, labels: Tensor) -> dict[str, float]:
        """Return Dice and IoU, 0..1, and the mean loss.

        A class's Dice is the mean over the images. An image that has the class in neither mask nor prediction is left
        out of it, or counts 0 with ``absent_class: zero``, as in HarmoFL's code. A class that no image counts for is
        nan, and left out of the mean over classes. Scores that are not finite make every metric nan.
        """
        del labels
        if not torch.isfinite(rows).all():
            return dict.fromkeys(self.metrics, float("nan"))
        shared, predicted, true = rows[:, :-1].double().unflatten(1, (3, -1)).unbind(1)
        dice, iou = self._mean(2 * shared, predicted + true), self._mean(shared, predicted + true - shared)
        means = torch.stack([dice[1:].nanmean(), iou[1:].nanmean(), dice.nanmean(), iou.nanmean()])
        values = torch.cat([means, dice, iou, rows[:, -1:].double().mean(0)])
        return dict(zip(self.metrics, values.tolist(), strict=True))

    def measure_many(self, rows: Tensor, labels: Tensor, weights: Weights) -> dict[str, Values]:
        del labels
        if not torch.isfinite(rows).all():
            return dict.fromkeys(self.metrics, np.full(len(weights), np.nan))
        shared, predicted, true = rows[:, :-1].double().unflatten(1, (3, -1)).numpy().transpose(1, 0, 2)
        either = predicted + true - shared
        numbers = weights @ (np.ones_like(either) if self.absent_class == "zero" else (either > 0).astype(np.float64))
        with np.errstate(invalid="ignore"):
            dice, iou = (
                weights @ ratios / numbers
                for ratios in (2 * shared / np.maximum(predicted + true, 1), shared / np.maximum(either, 1))
            )
        means = [mean_of_known(part) for part in (dice[:, 1:], iou[:, 1:], dice, iou)]
        losses = weights @ rows[:, -1].double().numpy() / weights.sum(1)
        return dict(zip(self.metrics, [*means, *dice.T, *iou.T, losses], strict=True))

    def predictions(self, rows: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, list[Any]]:
        """Every class's Dice, null where neither mask nor prediction has it, and the loss."""
        del labels
        shared, predicted, true = rows[:, :-1].double().unflatten(1, (3, -1)).unbind(1)
        dice = torch.where(predicted + true > 0, 2 * shared / (predicted + true), torch.nan)
        columns = {f"dice/{name}": column for name, column in zip(names, dice.T.tolist(), strict=True)}
        return {**columns, "loss": rows[:, -1].tolist()}

    def _mean(self, shared: Tensor, whole: Tensor) -> Tensor:
        """Return the mean over images of shared / whole, (C,) from (N, C)."""
        ratios = shared / whole.clamp(min=1)
        return ratios.mean(0) if self.absent_class == "zero" else ratios.sum(0) / (whole > 0).sum(0)


def pixel_cross_entropy(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return each client's mean cross-entropy over pixels and images, (K,).

    ``outputs`` (K, B, C, H, W), ``targets`` (K, B, H, W), ``weights`` (K, B).
    """
    losses = F.cross_entropy(outputs.flatten(0, 1).float(), targets.flatten(0, 1).long(), reduction="none")
    return (losses.mean((1, 2)).view_as(weights) * weights).sum(1)


def dice_loss(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return 1 - the mean over classes, background included, of each client's soft Dice, (K,).

    ``outputs`` (K, B, C, H, W), ``targets`` (K, B, H, W). Pixels are added up over all images of the batch whose weight
    (K, B) is not zero: one ratio per class, as in HarmoFL's released code.
    """
    counts = (weights > 0)[..., None, None, None]
    probabilities = outputs.float().softmax(2) * counts
    true = (targets[:, :, None] == torch.arange(outputs.shape[2], device=outputs.device).view(-1, 1, 1)) & counts
    shared = (probabilities * true).sum((1, 3, 4))
    whole = probabilities.sum((1, 3, 4)) + true.sum((1, 3, 4))
    return 1 - ((2 * shared + SMOOTH) / (whole + SMOOTH)).mean(1)
