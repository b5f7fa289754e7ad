"""The loss where some classes are rare: weights for the classes, and the focal loss, which leaves out what is known.

Shapes: K clients, B images per client and step, C classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.config.train import TrainConfig
from fedsim.data.dataset import Dataset
from fedsim.errors import UserError


@dataclass(frozen=True)
class ClassLoss:
    """Cross-entropy times (1 - p)^gamma, p the probability of an image's class, times that class's weight.

    Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equations 4 and 5; gamma 0 is cross-entropy. The
    weights are none, or one for each class. A client's loss is the mean over its images whatever their weights.
    """

    gamma: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __call__(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return each client's loss (K,) of scores (K, B, C), targets (K, B) and the images' weights (K, B)."""
        logs = F.log_softmax(outputs.float(), 2).gather(2, targets[..., None])[..., 0]
        losses = -logs
        if self.gamma:
            # 1 - p from p's logarithm: exact where p is nearly 1, and its power has a gradient where 1 - p is 0.
            losses = losses * (-torch.expm1(logs)).clamp(min=torch.finfo(logs.dtype).tiny) ** self.gamma
        if self.class_weights is not None:
            losses = losses * outputs.new_tensor(self.class_weights, dtype=torch.float32)[targets]
        return (losses * weights).sum(1)


def class_loss(dataset: Dataset, config: TrainConfig) -> ClassLoss | None:
    """Return the loss that a config asks for, None for plain cross-entropy.

    ``class_weights: balanced`` weighs a class by N / (C' n), n of N training images being of it and C' classes being
    there, so that the mean weight is 1. UserError for weights of another number than there are classes, and for
    either where the set has no classes of images.
    """
    if config.loss != "focal" and config.class_weights is None:
        return None
    if dataset.masks is not None or dataset.targets is not None:
        key, value = ("loss", config.loss) if config.loss == "focal" else ("class_weights", config.class_weights)
        found = f"{value} with {dataset.name}, which has no classes of whole {dataset.unit}"
        raise UserError(f"train.{key}", found, "no such key: it is for one class an image")
    return ClassLoss(config.focal_gamma if config.loss == "focal" else 0.0, weights_of(dataset, config))


def weights_of(dataset: Dataset, config: TrainConfig) -> tuple[float, ...] | None:
    """Return the classes' weights, None for none; UserError as ``class_loss``."""
    num_classes = len(dataset.class_names)
    if config.class_weights != "balanced":
        if config.class_weights is not None and len(config.class_weights) != num_classes:
            expected = f"{num_classes}, one for each of {', '.join(dataset.class_names)}"
            raise UserError("train.class_weights", f"{len(config.class_weights)} numbers", expected)
        return config.class_weights
    counts = torch.bincount(dataset.labels[torch.from_numpy(dataset.train)], minlength=num_classes).double()
    present = counts > 0
    balanced = counts.sum() / (present.sum() * counts.clamp(min=1))
    return tuple(torch.where(present, balanced, 0.0).tolist())
