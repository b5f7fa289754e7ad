"""Everything that a run holds beside the server's state, the same on every rank; ``build.py`` makes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from algorithms.base import Algorithm, ServerState
from comm import Group
from fedsim.client import BlockTrainer
from fedsim.config import Config
from fedsim.data import Dataset
from fedsim.evaluate import evaluation_rows
from fedsim.images import ImageSource
from fedsim.models.stacked import StackedModel
from fedsim.pace import Pace
from fedsim.privacy.layer import Layer
from fedsim.public import PublicInputs
from fedsim.store import ClientStore
from fedsim.tasks import Task


@dataclass(frozen=True)
class Simulation:
    """The parts of a run. ``parts``: each client's training images, as indices into the data set.

    ``model`` is the server's, which is measured and exported; clients hold ``held``: a sub-model, which shares all but
    what is cut with ``model``, or ``model`` itself. ``public``: what a sub-model is aligned over, where the method does
    that. ``layers``: what wraps the method, see ``privacy/layer.py``.
    """

    config: Config
    group: Group
    dataset: Dataset
    parts: list[np.ndarray]
    task: Task
    model: StackedModel
    held: StackedModel
    algorithm: Algorithm
    layers: Sequence[Layer]
    images: ImageSource
    trainer: BlockTrainer
    store: ClientStore
    pace: Pace
    per_block: int
    public: PublicInputs | None = None

    @cached_property
    def sizes(self) -> list[int]:
        """Number of training images per client."""
        return [len(part) for part in self.parts]

    def initial_state(self) -> ServerState:
        """Return the server's state before the first round."""
        params = self.held.initial(self.config.seed)
        return ServerState(0, params, dict(self.algorithm.init_server(params)))

    def evaluate(self, params: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        """Return the metrics of the validation and the test images, the same on every rank."""
        metrics = {}
        for split, places in (("val", self.dataset.val), ("test", self.dataset.test)):
            size = self.config.evaluate.batch_size
            rows = evaluation_rows(self.task, self.model, params, self.images, places, size, self.group)
            metrics[split] = self.task.measure(rows, self.dataset.labels[torch.from_numpy(places)])
        return metrics
