"""What each client of a round sees of its own model, on its own images, before the communication and after it.

Before: the model at the end of the local training. After: the one that the client goes on with. The drop from one
to the other is the retrogress that PRR-FL is about.

Shapes: K clients of the cohort.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms.base import ServerState, Update
from fedsim.cohort import Cohort
from fedsim.evaluate import classification_metrics
from fedsim.simulation import Simulation

MOMENTS = ("before", "after")
SPLITS = ("val", "test")
METRICS = ("f1", "auroc", "balanced_accuracy")


class ClientFigures:
    """The metrics of a round's clients; nan for a client that has no images of a split."""

    def __init__(self, sim: Simulation, cohort: Cohort) -> None:
        self._sim = sim
        # Zero but for the clients of this rank, until ``collect``.
        self._table = torch.zeros(len(cohort.clients), len(MOMENTS), len(SPLITS), len(METRICS), dtype=torch.float64)

    def measure_before(
        self, block: range, update: Update, states: Sequence[Mapping[str, Tensor]], params: Mapping[str, Tensor]
    ) -> None:
        """Take in what a block of this rank learned in the round's last phase, from the server's ``params``."""
        own = self._sim.algorithm.client_model(states, params, update)
        self._measure(0, block, update.clients, params, own)

    def measure_after(self, block: range, clients: Sequence[int], state: ServerState) -> None:
        """Take in what a block of this rank holds now that the round is over."""
        states = [self._sim.store.read(client) for client in clients]
        own = self._sim.algorithm.client_model(states, state.params)
        self._measure(1, block, clients, state.params, own)

    def _measure(
        self, moment: int, block: range, clients: Sequence[int], params: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> None:
        for place, split in enumerate(SPLITS):
            scores, labels = self._sim.trainer.own.scores(split, clients, {**params, **own})
            for position, row, truth in zip(block, scores.cpu(), labels.cpu(), strict=True):
                found = dict.fromkeys(METRICS, float("nan"))
                if (truth >= 0).any():
                    found = classification_metrics(row[truth >= 0], truth[truth >= 0])
                values = torch.tensor([found[name] for name in METRICS], dtype=torch.float64)
                self._table[position, moment, place] = values

    def collect(self) -> None:
        """Bring the figures of all ranks together; every rank calls this."""
        device = self._sim.group.device
        bits = self._table.view(torch.int64).flatten().to(device)
        self._table = self._sim.group.sum_exact(bits).cpu().view(torch.float64).view(self._table.shape)

    def rows(self) -> list[dict[str, Any]]:
        """Return each client's figures, in the cohort's order: {"own": {moment: {split: {metric: value}}}}."""
        return [
            {
                "own": {
                    moment: {
                        split: dict(zip(METRICS, values.tolist(), strict=True))
                        for split, values in zip(SPLITS, by_split, strict=True)
                    }
                    for moment, by_split in zip(MOMENTS, by_moment, strict=True)
                }
            }
            for by_moment in self._table
        ]

    def diagnostics(self) -> dict[str, Any]:
        """Return the spread over the clients, and ``retrogress``: the mean drop of the macro-F1 per split."""
        spreads: dict[str, Any] = {}
        for place, split in enumerate(SPLITS):
            spreads[split] = {}
            for column, metric in enumerate(METRICS):
                before, after = self._table[:, :, place, column].T.numpy()
                spreads[split][metric] = {
                    "before": spread(before, worst=np.min),
                    "after": spread(after, worst=np.min),
                    "drop": spread(before - after, worst=np.max),
                }
        retrogress = {split: spreads[split]["f1"]["drop"]["mean"] for split in SPLITS}
        return {"clients": spreads, "retrogress": retrogress}


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
