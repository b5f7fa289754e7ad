"""How long clients and ranks take, measured; it steers who trains what and shows in no result."""

from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from statistics import fmean, median

from torch import Tensor

from fedsim.config.train import TrainConfig
from fedsim.schedule.cohort import Cohort, num_local_steps

Seconds = deque[float]
#: So many clients are remembered, those of the last rounds, whatever the population.
MOST_CLIENTS = 10_000


def recent_seconds() -> Seconds:
    """Room for so many measurements that a single one, or a checkpoint now and then, does not count."""
    return deque(maxlen=9)


class Pace:
    """Seconds of the last phases, the same on every rank; their medians count.

    ``sizes``: the training images of every client.
    """

    def __init__(self, train: TrainConfig, sizes: Sequence[int], num_ranks: int) -> None:
        self._train = train
        self._sizes = sizes
        self._num_ranks = num_ranks
        # Each client's per local step, the mean of each phase, and every rank's from the last meeting to its training.
        self._step_seconds: OrderedDict[int, Seconds] = OrderedDict()
        self._usual = recent_seconds()
        self._busy_seconds: dict[int, Seconds] = defaultdict(recent_seconds)

    def expected_seconds(self, cohort: Cohort, blocks: Sequence[range]) -> list[float]:
        """Return how long training each block should take; in steps before the first measurement."""
        known = {
            client: median(self._step_seconds[client]) for client in cohort.clients if client in self._step_seconds
        }
        # Whoever is new, as most are in a large population, is taken to be as others were.
        usual = median(self._usual or [1.0])
        seconds = [self._steps(client) * known.get(client, usual) for client in cohort.clients]
        return [sum(seconds[block.start : block.stop]) for block in blocks]

    def expected_busy(self) -> list[float]:
        """Return how long every rank should be busy before it trains, the server with its records."""
        return [median(self._busy_seconds[rank] or [0.0]) for rank in range(self._num_ranks)]

    def remember(self, cohort: Cohort, seconds_K: Tensor, busy: Sequence[float]) -> None:
        """Take the measured seconds of a phase: of its clients, and of the ranks before it."""
        for rank, seconds in enumerate(busy):
            self._busy_seconds[rank].append(seconds)
        found = [
            seconds / self._steps(client) for client, seconds in zip(cohort.clients, seconds_K.tolist(), strict=True)
        ]
        if found:
            self._usual.append(fmean(found))
        for client, seconds in zip(cohort.clients, found, strict=True):
            self._step_seconds.setdefault(client, recent_seconds()).append(seconds)
            self._step_seconds.move_to_end(client)
        while len(self._step_seconds) > max(MOST_CLIENTS, len(cohort.clients)):
            self._step_seconds.popitem(last=False)

    def _steps(self, client: int) -> int:
        return num_local_steps(self._train, self._sizes[client])
