"""What is measured here, as numbers that any program can read, and what follows from them for a block of clients.

K clients of a block, B blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls  # type: ignore[import-untyped]  # no types

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PhaseCosts:
    """Seconds of a phase's training: of each step of a block, of each image that a client sees, and of each client."""

    name: str
    step: float
    image: float
    client: float

    def of(self, features_B3: Floats) -> Floats:
        """Return the seconds of blocks with so many steps, images and clients, (B,)."""
        seconds_B: Floats = features_B3 @ np.array([self.step, self.image, self.client])
        return seconds_B


@dataclass(frozen=True)
class Calibration:
    """What ``measure.py`` has measured, of one rank with ``threads`` threads unless it says otherwise.

    ``cohorts``: of some rounds each client's steps and images, in the order in which blocks are cut. ``fit``: the mean
    relative error of the ``phases``' costs. ``serial_seconds``: of a round on a rank that trains nobody. ``slowdown``:
    how many times longer training takes where ``processes`` ranks train at once; these have met in ``latency_seconds``
    to add up one number, and in ``meeting_seconds`` for all of a round, ``sent_bytes`` of each. ``processors``: how
    many ranks have one of their own here. ``up_bytes``, ``down_bytes``: of all clients in a round. ``rank_bytes``,
    ``device_bytes``: memory at most. ``state_bytes``: what a client keeps. ``activation_bytes``: what a client's step
    takes on a GPU. ``operations``: that a step calls. ``rate``: of products, operations a second, in ``precision``.
    """

    phases: list[PhaseCosts]
    fit: float
    cohorts: list[list[tuple[int, float]]]
    num_clients: int
    per_block: int
    serial_seconds: float
    evaluation_seconds: float
    processes: int
    processors: int
    threads: int
    slowdown: float
    latency_seconds: float
    meeting_seconds: float
    sent_bytes: int
    up_bytes: int
    down_bytes: int
    rank_bytes: int
    device_bytes: int
    state_bytes: int
    model_bytes: int
    data_bytes: int
    activation_bytes: int
    operations: int
    precision: str
    rate: float

    @classmethod
    def read(cls, words: dict[str, object]) -> "Calibration":
        """Return what ``dataclasses.asdict`` has made of one, perhaps as JSON in between."""
        phases: list[dict[str, object]] = words["phases"]  # type: ignore[assignment]  # asdict made it
        return cls(**{**words, "phases": [PhaseCosts(**phase) for phase in phases]})  # type: ignore[arg-type]  # as above


def features(clients: Sequence[tuple[int, float]], per_block: int) -> Floats:
    """Return the steps, images and number of clients of each block of a cohort, (B, 3)."""
    cut = [clients[start : start + per_block] for start in range(0, len(clients), per_block)]
    rows = [(max(steps for steps, _ in own), sum(images for _, images in own), len(own)) for own in cut]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def fitted(name: str, features_B3: Floats, seconds_B: Floats) -> tuple[PhaseCosts, float]:
    """Return the costs that come nearest to what blocks took, none of them negative, and the mean relative error."""
    # Each row over its seconds: what counts is the relative error.
    costs = nnls(features_B3 / seconds_B[:, None], np.ones(len(seconds_B)))[0]
    found = PhaseCosts(name, *costs.tolist())
    return found, float(np.abs(found.of(features_B3) / seconds_B - 1).mean())
