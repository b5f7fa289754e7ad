"""The simulated clock: who arrives, in which order, and how long a round takes; all by hand."""

from typing import Any

import numpy as np
import pytest

from fedsim.config.clock import Constant, Hinge, Polynomial
from fedsim.schedule.buffer import BufferedClock, open_clock, weight_of
from fedsim.schedule.clock import Clock, Hands
from fedsim.schedule.cohort import draw_cohort
from fedsim.schedule.devices import Load
from tests.helpers import make_config

SIZES = [16, 16, 16, 16]
#: Speeds of the clients; a client's work takes a second at speed 1.
SPEEDS = (1, 0.5, 0.25, 0.125)


@pytest.fixture
def clock_of(tmp_path: Any) -> Any:
    """A clock of four clients that take 1, 2, 4 and 8 seconds; ``extra``: further columns of the trace by name."""

    def make(aggregation: dict[str, Any], extra: dict[str, list[float]] | None = None, **clients: Any) -> Any:
        columns = {"client": [0, 1, 2, 3], "speed": SPEEDS, **(extra or {})}
        lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        path = tmp_path / "trace.csv"
        path.write_text("\n".join(lines))
        words = {"example_seconds": 1 / 16, "trace": str(path), "aggregation": aggregation}
        config = make_config(clients={"count": 4, **clients}, clock=words)
        clock = open_clock(config, SIZES)
        clock.start(Hands(), lambda: Load(1, np.zeros(4), np.zeros(4)))
        return clock

    return make


def test_without_a_clock_everybody_arrives_in_no_time() -> None:
    config = make_config(clients={"count": 4, "per_round": 2})
    clock = open_clock(config, SIZES)
    assert type(clock) is Clock
    assert clock.cohort(3).clients == draw_cohort(config.clients, config.train, SIZES, config.seed, 3).clients
    assert clock.row == {}


def test_a_round_lasts_until_the_slowest_has_arrived(clock_of: Any) -> None:
    clock = clock_of({"name": "synchronous"})
    assert clock.cohort(1).clients == (0, 1, 2, 3)
    assert clock.row == {"clock": {"seconds": 8.0, "arrived": 4, "dropped": 0, "late": 0}}
    clock.cohort(2)
    assert clock.hands.seconds == 16.0


def test_at_the_deadline_nobody_is_waited_for(clock_of: Any) -> None:
    clock = clock_of({"name": "synchronous", "deadline_seconds": 4.0})
    found = clock.cohort(1)
    assert found.clients == (0, 1, 2)
    assert found.weights.tolist() == pytest.approx([1 / 3] * 3)
    assert clock.row["clock"] == {"seconds": 4.0, "arrived": 3, "dropped": 0, "late": 1}


def test_of_more_clients_than_wanted_the_first_count(clock_of: Any) -> None:
    """Twice two are chosen; the second arrives after two seconds, and nobody is waited for any more."""
    clock = clock_of({"name": "synchronous", "over_selection": 2.0}, per_round=2)
    assert clock.cohort(1).clients == (0, 1)
    assert clock.row["clock"] == {"seconds": 2.0, "arrived": 2, "dropped": 0, "late": 2}


def test_no_client_more_is_chosen_than_asked_for() -> None:
    """1.1 * 100 is a little above 110."""
    how = {"name": "synchronous", "over_selection": 1.1}
    config = make_config(clients={"count": 120, "per_round": 100}, clock={"example_seconds": 1.0, "aggregation": how})
    clock = open_clock(config, [16] * 120)
    clock.start(Hands(), lambda: Load(1, np.zeros(120), np.zeros(120)))
    clock.cohort(1)
    assert (clock.row["clock"]["arrived"], clock.row["clock"]["late"]) == (100, 10)


def test_who_is_not_there_is_not_chosen_and_who_drops_is_missed(clock_of: Any) -> None:
    extra = {"availability": [1e-9, 1, 1, 1], "dropout": [0, 0, 0, 1 - 1e-9]}
    clock = clock_of({"name": "synchronous", "deadline_seconds": 100.0}, extra)
    assert clock.cohort(1).clients == (1, 2)
    # The lost update would have come after 8 seconds.
    assert clock.row["clock"] == {"seconds": 8.0, "arrived": 2, "dropped": 1, "late": 0}


def test_a_round_without_anybody_takes_no_time(clock_of: Any) -> None:
    clock = clock_of({"name": "synchronous"}, {"availability": [1e-9] * 4})
    assert clock.cohort(1).clients == ()
    assert clock.row["clock"]["seconds"] == 0.0


def arrivals(clock: BufferedClock, round: int) -> tuple[float, list[tuple[int, int]]]:
    """Time, and the buffer's clients with the rounds of the states that they began from, as they arrived."""
    flights = clock.fill_buffer(round)
    return clock.hands.seconds, [(flight.client, flight.round) for flight in flights]


def test_a_buffer_of_two_among_all_four(clock_of: Any) -> None:
    clock = clock_of({"name": "fedbuff", "buffer_size": 2})
    # All leave at 0. 0 and 1 fill the buffer at 2; they leave again from state 1.
    assert arrivals(clock, 1) == (2.0, [(0, 0), (1, 0)])
    # 0 is back at 3. At 4 come 2, which left first, and 1; there is room for one.
    assert arrivals(clock, 2) == (4.0, [(0, 1), (2, 0)])
    assert clock.row["clock"]["staleness"] == {"mean": 0.5, "max": 1}
    # 1 has been waiting; 0 left at 4.
    assert arrivals(clock, 3) == (5.0, [(1, 1), (0, 2)])
    # 0 is back at 6, and 1, which left at 5, at 7.
    assert arrivals(clock, 4) == (7.0, [(0, 3), (1, 3)])
    # 2, which left at 4, and 3, which left at 0, come at 8, beside 0, which left at 7; 3 left first.
    assert arrivals(clock, 5) == (8.0, [(3, 0), (2, 2)])
    assert clock.row["clock"]["staleness"] == {"mean": 3.0, "max": 4}


def test_a_place_that_falls_free_is_taken_at_once_by_somebody_new(clock_of: Any) -> None:
    clock = clock_of({"name": "fedbuff", "buffer_size": 3}, per_round=2)
    taken = [flight.client for flight in clock.fill_buffer(1)]
    # Two left at first, and one for each of the first two that came; the third came with the server's step.
    (left,) = clock.hands.flights
    assert sorted([*taken, left.client]) == [0, 1, 2, 3]
    assert left.round == 0


def test_too_stale_updates_are_late_and_their_states_are_not_kept(clock_of: Any) -> None:
    clock = clock_of({"name": "fedbuff", "buffer_size": 2, "max_staleness": 2})
    for round in range(1, 5):
        clock.fill_buffer(round)
    # 3 left from state 0 and is on its way; nobody needs that state.
    assert 3 in [flight.client for flight in clock.hands.flights]
    assert clock.origins(5) == {2}
    assert arrivals(clock, 5)[1] == [(2, 2), (0, 4)]
    assert clock.row["clock"]["late"] == 1


def test_where_all_drop_the_buffer_is_not_waited_for(clock_of: Any) -> None:
    clock = clock_of({"name": "fedbuff", "buffer_size": 3}, {"dropout": [0, 1 - 1e-9, 1 - 1e-9, 1 - 1e-9]})
    assert arrivals(clock, 1) == (8.0, [(0, 0)])
    assert clock.row["clock"]["dropped"] == 3


def test_no_delay_and_a_buffer_as_large_as_the_cohort_is_the_synchronous_cohort() -> None:
    words = {"example_seconds": 0.0, "aggregation": {"name": "fedbuff", "buffer_size": 2}}
    config = make_config(clients={"count": 4, "per_round": 2}, clock=words)
    clock = open_clock(config, SIZES)
    assert isinstance(clock, BufferedClock)
    for round in range(1, 6):
        expected = draw_cohort(config.clients, config.train, SIZES, config.seed, round).clients
        assert arrivals(clock, round) == (0.0, [(client, round - 1) for client in expected])
        assert not clock.hands.flights


@pytest.mark.parametrize(
    ("words", "weights"),
    [
        (Constant(name="constant"), [1, 1, 1, 1]),
        (Polynomial(), [1, 2**-0.5, 3**-0.5, 0.5]),
        (Hinge(name="hinge", slope=2.0, after=1), [1, 1, 1 / 3, 1 / 5]),
    ],
)
def test_weights_of_staleness(words: Any, weights: list[float]) -> None:
    assert [weight_of(staleness, words) for staleness in range(4)] == pytest.approx(weights)
