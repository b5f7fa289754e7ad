"""Running models on the clients' own images: a block's models together, each on the images of its client.

Shapes: K clients, M models of a client, R = K M models, client by client, N images of the client that has most,
S numbers that the task's metrics need of an image, C classes.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedsim.config.experiment import Config
from fedsim.data import ClientImages, Dataset, divide_held_out
from fedsim.errors import UserError
from fedsim.inputs.images import ImageSource
from fedsim.models.stacked import StackedModel
from fedsim.tasks.task import Task


class OwnImages:
    """Who has which images of the splits train, val and test, and what models make of them."""

    def __init__(
        self,
        config: Config,
        task: Task,
        model: StackedModel,
        images: ImageSource,
        dataset: Dataset,
        parts: ClientImages,
    ) -> None:
        self._config = config
        self._task = task
        self._model = model
        self._images = images
        self._dataset = dataset
        self.parts = parts

    @cached_property
    def held_out(self) -> Mapping[str, ClientImages]:
        """Each client's own validation and test images: ``{"val": [...], "test": [...]}``, indices like ``parts``."""
        return divide_held_out(self._dataset, self._config.clients, self.parts, self._config.seed)

    def places(self, split: str) -> ClientImages:
        """Return each client's own images of a split, as indices into the data set.

        UserError where a partition's file does not say whose the images of the split are.
        """
        if split == "train":
            return self.parts
        if split not in self.held_out:
            file = self._config.clients.partition.model_dump()["path"]
            expected = f'"{split}": [[index, ...], ...], since clients are measured on their own images of that split'
            raise UserError(file, f'no "{split}"', expected)
        return self.held_out[split]

    def require(self, split: str) -> None:
        """Raise UserError where a client that trains has no image of the split."""
        trained, own = (np.asarray(parts.sizes) for parts in (self.parts, self.places(split)))
        for client in np.flatnonzero((trained > 0) & (own == 0)):
            raise UserError(
                f"algorithm.decide_on, client {client}",
                f"{split} without an image of that split",
                "train, or a partition that leaves every client some",
            )

    def rows(
        self, split: str, clients: Sequence[int], params: Mapping[str, Tensor], num_models: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return the task's rows (R, N, S) on the device and labels (R, N), -1 at places that a client does not fill.

        ``params`` are shared or one for each model, (R, ...).
        """
        own = [self.places(split)[client] for client in clients]
        self._prepare(split, own)
        width = max((len(part) for part in own), default=0)
        index = torch.zeros(len(own), width, dtype=torch.int64)
        labels = torch.full((len(own), width), -1)
        for row, part in enumerate(own):
            places = torch.from_numpy(part)
            index[row, : len(part)], labels[row, : len(part)] = places, self._dataset.labels[places]
        device, size = self._model.device, self._config.evaluate.batch_size
        found = torch.zeros(len(own) * num_models, width, self._task.row_size, device=device)
        for start in range(0, width, size):
            rows = [row for row, part in enumerate(own) if len(part) > start]
            sizes = [min(size, len(own[row]) - start) for row in rows for _ in range(num_models)]
            stop = start + max(sizes)
            busy = torch.tensor(rows)
            models = (busy[:, None] * num_models + torch.arange(num_models)).flatten().to(device)
            places = index[busy, start:stop]
            fixed = self._images.plain_batch(places).repeat_interleave(num_models, 0)
            targets = self._images.targets[places.to(device)].repeat_interleave(num_models, 0)
            with torch.no_grad():
                mine = self._of_models(params, models, len(found))
                outputs = self._model.forward(mine, fixed, training=False, sizes=sizes)
                values = self._task.rows(outputs.flatten(0, 1), targets.flatten(0, 1))
            found[models, start:stop] = values.unflatten(0, (len(models), -1))
        return found, labels.repeat_interleave(num_models, 0).to(device)

    def _prepare(self, split: str, own: Sequence[np.ndarray]) -> None:
        """Compute prefixes in groups that no cut into blocks or ranks changes: a client's, or a whole split's."""
        if split == "train":
            self._images.fill(own)
            return
        places, size = vars(self._dataset)[split], self._config.evaluate.batch_size
        self._images.fill([places[start : start + size] for start in range(0, len(places), size)])

    def _of_models(self, params: Mapping[str, Tensor], models: Tensor, num_models: int) -> Mapping[str, Tensor]:
        """Take the parameters of some models of what each has for its own."""
        if len(models) == num_models:
            return params
        specs = self._model.specs
        return {name: v[models] if v.dim() > len(specs[name].shape) else v for name, v in params.items()}


def macro_f1(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the macro-F1 (0..1) of each row, float64 (R,), over the classes that occur in labels or predictions.

    ``scores`` (R, N, C); ``labels`` (R, N), -1 for places that do not count. Nan for a row of which no place
    counts or a score is not finite.
    """
    num_rows, _, num_classes = scores.shape
    counts = labels >= 0
    pairs = (labels * num_classes + scores.argmax(2)) + torch.arange(num_rows, device=labels.device)[:, None] * (
        num_classes**2
    )
    confusion = torch.bincount(pairs[counts], minlength=num_rows * num_classes**2)
    confusion = confusion.view(num_rows, num_classes, num_classes).double()
    occurrences = confusion.sum(1) + confusion.sum(2)
    f1 = 2 * confusion.diagonal(dim1=1, dim2=2) / occurrences.clamp(min=1)
    is_finite = torch.isfinite(scores).all(2).logical_or(~counts).all(1)
    mean = f1.sum(1) / (occurrences > 0).sum(1)
    return torch.where(is_finite, mean, torch.nan)
