"""What each client of a round sees of its own model, on its own images, before the communication and after it.

Before: the model at the end of the local training. After: the one that the client goes on with. The drop from one
to the other is the retrogress that PRR-FL is about. Where clients use a model that no communication touches and
exchange another (PRR-FL's deputy), that one is measured too.

Shapes: K clients of the cohort.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms.base import Algorithm, ServerState, Update
from fedsim.cohort import Cohort
from fedsim.simulation import Simulation
from fedsim.tasks import Task

MODELS = ("own", "exchanged")
MOMENTS = ("before", "after")
SPLITS = ("val", "test")


class ClientFigures:
    """The metrics of a round's clients; nan for a client that has no images of a split."""

    def __init__(self, sim: Simulation, cohort: Cohort) -> None:
        self._sim = sim
        self._metrics = sim.task.client_metrics
        exchanges = type(sim.algorithm).exchanged_model is not Algorithm.exchanged_model
        self._models = MODELS if exchanges else MODELS[:1]
        # Zero but for the clients of this rank, until ``collect``.
        sizes = (len(axis) for axis in (cohort.clients, self._models, MOMENTS, SPLITS, self._metrics))
        self._table = torch.zeros(*sizes, dtype=torch.float64)

    def measure_before(
        self, block: range, update: Update, states: Sequence[Mapping[str, Tensor]], params: Mapping[str, Tensor]
    ) -> None:
        """Take in what a block of this rank learned in the round's last phase, from the server's ``params``."""
        self._measure("before", block, update.clients, states, params, update)

    def measure_after(self, block: range, clients: Sequence[int], state: ServerState) -> None:
        """Take in what a block of this rank holds now that the round is over."""
        states = [self._sim.store.read(client) for client in clients]
        self._measure("after", block, clients, states, state.params, None)

    def _measure(
        self,
        moment: str,
        block: range,
        clients: Sequence[int],
        states: Sequence[Mapping[str, Tensor]],
        params: Mapping[str, Tensor],
        update: Update | None,
    ) -> None:
        method = self._sim.algorithm
        for which, model in enumerate((method.client_model, method.exchanged_model)[: len(self._models)]):
            own = model(states, params, update)
            for place, split in enumerate(SPLITS):
                rows, labels = self._sim.trainer.own.rows(split, clients, {**params, **own})
                for position, row, truth in zip(block, rows.cpu(), labels.cpu(), strict=True):
                    self._table[position, which, MOMENTS.index(moment), place] = own_metrics(self._sim.task, row, truth)

    def collect(self) -> None:
        """Bring the figures of all ranks together; every rank calls this."""
        bits = self._table.view(torch.int64).flatten().to(self._sim.group.device)
        self._table = self._sim.group.sum_exact(bits).cpu().view(torch.float64).view(self._table.shape)

    def rows(self) -> list[dict[str, Any]]:
        """Return each client's figures, in the cohort's order: {model: {moment: {split: {metric: value}}}}."""
        axes = (self._models, MOMENTS, SPLITS, self._metrics)
        return [named(values.tolist(), axes) for values in self._table]

    def diagnostics(self) -> dict[str, Any]:
        """Return the spread over the clients, and ``retrogress``: the mean drop of the task's first client metric.

        Under ``clients`` and ``retrogress`` for the models that clients use, with ``_exchanged`` for the others.
        """
        found: dict[str, Any] = {}
        for which, model in enumerate(self._models):
            spreads = {split: self._spreads(which, place) for place, split in enumerate(SPLITS)}
            ending = "" if model == "own" else f"_{model}"
            found[f"clients{ending}"] = spreads
            found[f"retrogress{ending}"] = {split: spreads[split][self._metrics[0]]["drop"]["mean"] for split in SPLITS}
        return found

    def _spreads(self, which: int, place: int) -> dict[str, Any]:
        spreads = {}
        for column, metric in enumerate(self._metrics):
            before, after = self._table[:, which, :, place, column].T.numpy()
            spreads[metric] = {
                "before": spread(before, worst=np.min),
                "after": spread(after, worst=np.min),
                "drop": spread(before - after, worst=np.max),
            }
        return spreads


def own_metrics(task: Task, rows: Tensor, labels: Tensor) -> Tensor:
    """Return the task's ``client_metrics`` over the images whose label is not -1, float64; nan without any."""
    counts = labels >= 0
    if not counts.any():
        return torch.full((len(task.client_metrics),), torch.nan, dtype=torch.float64)
    found = task.measure(rows[counts], labels[counts])
    return torch.tensor([found[name] for name in task.client_metrics], dtype=torch.float64)


def named(values: Any, axes: Sequence[Sequence[str]]) -> Any:
    """Turn nested lists into nested mappings, their keys the names of each axis."""
    if not axes:
        return values
    return {name: named(value, axes[1:]) for name, value in zip(axes[0], values, strict=True)}


def spread(values_K: np.ndarray, worst: Any) -> dict[str, Any]:
    """Return mean, standard deviation, worst and the nine deciles over the clients that have a value."""
    known = values_K[~np.isnan(values_K)]
    if not len(known):
        return {"clients": 0, "mean": None, "std": None, "worst": None, "deciles": None}
    return {
        "clients": len(known),
        "mean": float(known.mean()),
        "std": float(known.std()),
        "worst": float(worst(known)),
        "deciles": np.quantile(known, np.linspace(0.1, 0.9, 9)).tolist(),
    }
