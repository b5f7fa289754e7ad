"""The simulated clock of synchronous rounds: who of those that were chosen arrives, and when the round is over.

All of it is known before anything is trained, so what never arrives is never trained. The same on every rank.

Shapes: N clients of the run, K of a cohort.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fedsim.config.clock import ClockConfig, Synchronous
from fedsim.config.experiment import Config
from fedsim.errors import UserError
from fedsim.schedule.cohort import Cohort, draw_cohort
from fedsim.schedule.devices import Load, devices_of

NOBODY = Cohort((), torch.zeros(0, dtype=torch.float64))


@dataclass(frozen=True)
class Flight:
    """A client on its way.

    ``round``: of the server's state that it began from. ``arrives``: on the clock, in simulated seconds. ``drops``:
    whether its update is lost, which the server notices at that moment.
    """

    client: int
    round: int
    arrives: float
    drops: bool


@dataclass
class Hands:
    """Where a clock stands; a checkpoint keeps it.

    ``seconds``: simulated, since the run began. ``flights``: who is on the way, in the order of departure. ``devices``:
    a digest of what the times follow from.
    """

    seconds: float = 0.0
    flights: list[Flight] = field(default_factory=list)
    devices: str | None = None


class Clock:
    """No simulated clock: whoever is drawn takes part, and no time passes. ``sizes`` (N,): the training images."""

    def __init__(self, config: Config, sizes: Sequence[int]) -> None:
        self._config = config
        self._sizes = sizes
        self.hands = Hands()
        #: What there is to say of the last round, for its row of metrics.jsonl.
        self.row: dict[str, Any] = {}

    def start(self, hands: Hands, load: Callable[[], Load]) -> None:
        """Go on from ``hands``, which follow the clock from now on. ``load``: what a round asks of the clients."""

    def rows(self) -> list[tuple[str, str]]:
        """Return what there is to say before the first round, as rows of name and text."""
        return []

    def cohort(self, round: int) -> Cohort:
        """Return who takes part in a round (counted from 1), and let the time pass that it takes."""
        return self._draw(self._config.clients.num_per_round, self._sizes, round)

    def _draw(self, number: int, sizes: Sequence[int], round: int) -> Cohort:
        clients = self._config.clients
        if number != clients.num_per_round:
            clients = clients.model_copy(update={"per_round": number})
        return draw_cohort(clients, self._config.train, sizes, self._config.seed, round)


class SimulatedClock(Clock):
    """A clock over simulated devices, see ``fedsim/schedule/devices.py``, for rounds that wait for their clients.

    A round chooses among those who are available. It ends when as many have arrived as it wants, when nobody is left to
    wait for, or at the deadline: whoever would come later is late. A client's update that is lost is missed at the
    moment at which it would have arrived.
    """

    def __init__(self, config: Config, sizes: Sequence[int], clock: ClockConfig) -> None:
        super().__init__(config, sizes)
        self._clock = clock
        self._devices = devices_of(clock, len(sizes), config.seed)
        self._seconds = np.zeros(len(sizes))

    def start(self, hands: Hands, load: Callable[[], Load]) -> None:
        digest = self._devices.digest
        if hands.devices not in (None, digest):
            found = f"devices of sha256 {digest[:12]}"
            raise UserError("--resume: clock", found, f"{str(hands.devices)[:12]}, as the checkpoint has it")
        hands.devices = digest
        self.hands = hands
        words = self._config.train
        self._seconds = self._devices.seconds(load(), self._sizes, words, self._clock.example_seconds)

    def rows(self) -> list[tuple[str, str]]:
        seconds = self._seconds[np.array(self._sizes) > 0]
        low, half, high = np.quantile(seconds, (0, 0.5, 1))
        return [("clock", f"{low:.4g} to {high:.4g} simulated seconds of a client per round, median {half:.4g}")]

    def cohort(self, round: int) -> Cohort:
        how = self._clock.aggregation
        assert isinstance(how, Synchronous), "an asynchronous clock fills buffers"
        seed = self._config.seed
        sizes = np.where(self._devices.available(seed, round), self._sizes, 0).tolist()
        number = self._config.clients.num_per_round
        most = math.ceil(how.over_selection * number * (1 - 1e-12))  # 1.1 * 100 is a little above 110
        drawn = self._draw(most, sizes, round) if any(sizes) else NOBODY
        if not drawn.clients:
            self._note(0, 0, 0)
            return drawn
        wanted = number if how.over_selection > 1 else len(drawn.clients)

        # Who arrives in time, in which order; at the same moment in the cohort's.
        chosen = list(drawn.clients)
        seconds_K, drops_K = self._seconds[chosen], self._devices.dropping(seed, round)[chosen]
        deadline = math.inf if how.deadline_seconds is None else how.deadline_seconds
        in_time = [k for k in np.argsort(seconds_K, kind="stable") if not drops_K[k] and seconds_K[k] <= deadline]
        taken = sorted(in_time[:wanted])
        last = seconds_K[in_time[wanted - 1]] if len(taken) == wanted else min(deadline, seconds_K.max())
        self.hands.seconds += float(last)
        self._note(len(taken), int(drops_K.sum()), len(chosen) - len(taken) - int(drops_K.sum()))
        return drawn.of_places(taken)

    def _note(self, arrived: int, dropped: int, late: int, **more: Any) -> None:
        counts = {"arrived": arrived, "dropped": dropped, "late": late}
        self.row = {"clock": {"seconds": self.hands.seconds, **counts, **more}}
