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

from fedsim.algorithms.base import Phase, ServerState, Update
from fedsim.schedule.cohort import Cohort
from fedsim.simulation import Simulation
from fedsim.tasks.task import Task

MOMENTS = ("before", "after")
SPLITS = ("val", "test")


class ClientScores:
    """The metrics of a round's clients; nan for a client that has no images of a split.

    ``phase``: the round's last, before and after which clients are measured; None: nothing is measured.
    """

    def __init__(
        self, sim: Simulation, state: ServerState, cohort: Cohort, mine: Sequence[range], phase: Phase | None
    ) -> None:
        self._sim = sim
        self._cohort = cohort
        self._mine = mine
        self._phase = phase
        self._metrics = sim.task.client_metrics
        # Which models there are a method tells without clients, too.
        self._models = tuple(sim.algorithm.client_params([], state.params))
        # Zero but for the clients of this rank, until all have met.
        sizes = (len(axis) for axis in (cohort.clients, self._models, MOMENTS, SPLITS, self._metrics))
        self._table = torch.zeros(*sizes, dtype=torch.float64)

    def measure_before(self, block: range, places: Sequence[int], update: Update, params: Mapping[str, Tensor]) -> None:
        """Take in what the clients at some places of a block have learned, from the server's ``params``."""
        if update.phase == self._phase:
            self._table[block.start : block.stop, :, MOMENTS.index("before")] = torch.nan
            self._measure("before", places, update.kept, params, update)

    def measure_after(self, state: ServerState) -> None:
        """Take in what the blocks of this rank hold now that the round is over, and bring all ranks together."""
        if self._phase is None:
            return
        for block in self._mine:
            kept = [self._sim.store.read(client) for client in self._cohort.clients[block.start : block.stop]]
            self._measure("after", block, kept, state.params, None)
        bits = self._table.view(torch.int64).flatten().to(self._sim.group.device)
        self._table = self._sim.group.sum_exact(bits).cpu().view(torch.float64).view(self._table.shape)

    def _measure(
        self,
        moment: str,
        places: Sequence[int],
        kept: Sequence[Mapping[str, Tensor]],
        params: Mapping[str, Tensor],
        update: Update | None,
    ) -> None:
        clients = [self._cohort.clients[place] for place in places]
        models = self._sim.algorithm.client_params(kept, params, update)
        for which, own in enumerate(models.values()):
            for place, split in enumerate(SPLITS):
                theirs = self._sim.trainer.ranks.given(clients, {**params, **own})
                rows, labels = self._sim.trainer.own.rows(split, clients, theirs)
                for position, row, truth in zip(places, rows.cpu(), labels.cpu(), strict=True):
                    self._table[position, which, MOMENTS.index(moment), place] = own_metrics(self._sim.task, row, truth)

    def rows(self) -> list[dict[str, Any]]:
        """Return each client's scores, in the cohort's order: {model: {moment: {split: {metric: value}}}}; or none."""
        if self._phase is None:
            return []
        axes = (self._models, MOMENTS, SPLITS, self._metrics)
        return [named(values.tolist(), axes) for values in self._table]

    def diagnostics(self) -> dict[str, Any]:
        """Return the spread over the clients, and ``retrogress``: the mean drop of the task's first client metric.

        Under ``clients`` and ``retrogress`` for the models that clients use, with ``_exchanged`` for the others.
        """
        found: dict[str, Any] = {}
        if self._phase is None:
            return found
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
