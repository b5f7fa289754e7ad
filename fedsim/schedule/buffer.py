"""The simulated clock of asynchronous rounds: whose updates fill the buffer, and who trains meanwhile.

``clients.per_round`` clients are on the way at any time. The server's state changes when the buffer is full; then, and
whenever a place falls free before, clients are sent off from the state that is the server's at that moment. What
arrives at one moment is taken in before anybody is sent off. A client is sent off once from a state, so that it is in a
buffer once, and not before the state after the one that its last update was for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from fedsim.config.clock import FedAsync, FedBuff, Hinge, Polynomial, Staleness
from fedsim.config.experiment import Config
from fedsim.schedule.clock import Clock, Flight, SimulatedClock
from fedsim.schedule.cohort import draw_clients
from fedsim.seeding import numpy_stream


def open_clock(config: Config, sizes: Sequence[int]) -> Clock:
    """Return the clock that a config asks for; UserError for a trace that does not fit the clients."""
    if config.clock is None:
        return Clock(config, sizes)
    kind = BufferedClock if config.is_asynchronous else SimulatedClock
    return kind(config, sizes, config.clock)


class BufferedClock(SimulatedClock):
    """A clock for rounds that end when the buffer is full, or earlier where nobody is left who could come."""

    @property
    def how(self) -> FedBuff | FedAsync:
        """The config's words."""
        how = self._clock.aggregation
        assert isinstance(how, FedBuff | FedAsync), "a synchronous clock has cohorts"
        return how

    def fill_buffer(self, round: int) -> list[Flight]:
        """Let time pass until the buffer of a round (counted from 1) is full; return what is in it, as it arrived."""
        hands, taken, dropped, late = self.hands, list[Flight](), 0, 0
        queue = self._queue(round)
        self._send_off(queue)
        while hands.flights and len(taken) < self.how.buffer_size:
            hands.seconds = min(flight.arrives for flight in hands.flights)
            landing = [flight for flight in hands.flights if flight.arrives == hands.seconds]
            while landing and len(taken) < self.how.buffer_size:
                hands.flights.remove(flight := landing.pop(0))
                if flight.drops:
                    dropped += 1
                elif self.is_too_old(flight.round, round):
                    late += 1
                else:
                    taken.append(flight)
            if len(taken) < self.how.buffer_size:
                self._send_off(queue)
        stale = [round - 1 - flight.round for flight in taken]
        figures = {"mean": sum(stale) / len(stale), "max": max(stale)} if stale else None
        self._note(len(taken), dropped, late, staleness=figures)
        return taken

    def is_too_old(self, origin: int, round: int) -> bool:
        """Whether an update that began from the state after round ``origin`` counts nothing in a round."""
        limit = self.how.max_staleness
        return limit is not None and round - 1 - origin > limit

    def origins(self, round: int) -> set[int]:
        """Return the rounds after which those began who are on the way and will count in ``round`` or later."""
        return {one.round for one in self.hands.flights if not one.drops and not self.is_too_old(one.round, round)}

    @property
    def _num_free(self) -> int:
        """How many more should be on the way."""
        return self._config.clients.num_per_round - len(self.hands.flights)

    def _send_off(self, queue: Iterator[Flight]) -> None:
        """Let clients depart now, until as many are on the way as there should be."""
        for flight in islice(queue, self._num_free):
            arrives = self.hands.seconds + float(self._seconds[flight.client])
            self.hands.flights.append(replace(flight, arrives=arrives))

    def _queue(self, round: int) -> Iterator[Flight]:
        """Who may be sent off from the state before a round, in order."""
        config, here = self._config, self._devices.available(self._config.seed, round)
        sizes = np.where(here, self._sizes, 0)
        sizes[[flight.client for flight in self.hands.flights]] = 0
        drops = self._devices.dropping(config.seed, round)
        order = self._order(sizes, self._num_free, round)
        return (Flight(client, round - 1, 0.0, bool(drops[client])) for client in order)

    def _order(self, sizes: np.ndarray, number: int, round: int) -> Iterator[int]:
        """Clients with images: first as a synchronous round draws ``number`` of them, then the others."""
        if not sizes.any():
            return
        first = self._draw(number, sizes.tolist(), round).clients
        yield from first
        sizes[list(first)] = 0
        if len(rest := np.flatnonzero(sizes).tolist()):
            stream = numpy_stream(self._config.seed, "refill", round=round)
            yield from draw_clients(self._config.clients, self._sizes, rest, len(rest), stream).tolist()


def weight_of(staleness: int, words: Staleness) -> float:
    """Return s(staleness), 0..1: 1 for an update that began from the state that it is added to.

    Nguyen et al., 2022, weigh with (1 + staleness) ** -0.5. Xie et al., 2019, section 5.2, have all three.
    """
    if isinstance(words, Polynomial):
        return float((1 + staleness) ** -words.exponent)
    if isinstance(words, Hinge) and staleness > words.after:
        return 1 / (1 + words.slope * (staleness - words.after))
    return 1.0
