"""Measuring the global model: all ranks run it together, metrics are computed once.

Shapes: N images of a split, S numbers that the task's metrics need of an image.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim.comm.group import Group
from fedsim.config.train import LESS_IS_BETTER
from fedsim.inputs.images import ImageSource
from fedsim.models.stacked import StackedModel
from fedsim.simulation import Simulation
from fedsim.tasks.task import Task


def evaluation_rows(
    task: Task,
    model: StackedModel,
    params: Mapping[str, Tensor],
    images: ImageSource,
    places: np.ndarray,
    batch_size: int,
    group: Group,
) -> Tensor:
    """Return the task's rows (N, S) of the images at ``places``, the same on every rank.

    The batches are the same for any number of ranks; rank r computes every num_ranks-th of them.
    """
    rows = torch.zeros(len(places), task.row_size)
    starts = range(0, len(places), batch_size)
    with torch.no_grad():
        for start in starts[group.rank :: group.num_ranks]:
            batch = places[start : start + batch_size]
            outputs = model.forward(params, images.evaluation_batch(batch), training=False)
            targets = images.targets[torch.from_numpy(batch)]
            rows[start : start + len(batch)] = task.rows(outputs[0], targets).cpu()
    return group.sum_disjoint(rows)


def evaluate(
    sim: Simulation, params: Mapping[str, Tensor], splits: Sequence[str] = ("val", "test")
) -> dict[str, dict[str, float]]:
    """Return the metrics of the validation and the test images, the same on every rank."""
    return {split: measure_split(sim, params, split) for split in splits}


def measure_split(sim: Simulation, params: Mapping[str, Tensor], split: str) -> dict[str, float]:
    """Return the metrics of a split's images, the same on every rank."""
    places, size = vars(sim.dataset)[split], sim.config.evaluate.batch_size
    rows = evaluation_rows(sim.task, sim.model, params, sim.images, places, size, sim.group)
    return sim.task.measure(rows, sim.dataset.labels[torch.from_numpy(places)])


def worth(metrics: Mapping[str, float], best_by: str) -> float:
    """Return the metric named ``best_by``, with the sign with which more is better."""
    return -metrics[best_by] if best_by in LESS_IS_BETTER else metrics[best_by]
