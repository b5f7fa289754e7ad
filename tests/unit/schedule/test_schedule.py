"""Blocks to ranks: longest first onto the least loaded."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.config.train import TrainConfig
from fedsim.schedule import pace as pace_module
from fedsim.schedule.pace import Pace
from fedsim.schedule.ranks import assign_blocks, loads, lower_bound
from tests.helpers import play, simulate


def test_by_hand() -> None:
    # 7 to rank 0, 5 to rank 1, 4 to rank 1 (5 < 7), 3 to rank 0 (7 < 9), 1 to rank 1 (9 < 10)
    assert assign_blocks([3, 7, 5, 1, 4], [0, 0]) == [[1, 0], [2, 4, 3]]


def test_ties_go_to_the_lower_index() -> None:
    assert assign_blocks([2, 2, 2, 2], [0, 0]) == [[0, 2], [1, 3]]


def test_more_ranks_than_blocks() -> None:
    assert assign_blocks([1.0], [0, 0, 0]) == [[0], [], []]
    assert assign_blocks([], [0, 0]) == [[], []]


def test_a_rank_that_is_busy_first_gets_less() -> None:
    # Equal blocks but for the last: without its own work rank 0 would get the longer half.
    assert assign_blocks([17, 17, 17, 17, 17, 15], [0, 0]) == [[0, 2, 4], [1, 3, 5]]
    assert assign_blocks([17, 17, 17, 17, 17, 15], [2, 0]) == [[1, 3, 5], [0, 2, 4]]
    assert assign_blocks([1, 1], [5, 0, 1]) == [[], [0, 1], []]


def test_the_median_of_what_was_measured_counts() -> None:
    train = TrainConfig.model_validate({"lr": 0.1, "batch_size": 1, "epochs": 1})
    pace = Pace(train, [4, 2, 3], num_ranks=2)
    both: Any = SimpleNamespace(clients=(1, 0))
    assert pace.expected_seconds(both, [range(2)]) == [6]
    assert pace.expected_busy() == [0, 0]
    for seconds, busy in (([3.0, 4.0], [0.5, 0.3]), ([2.0, 8.0], [0.4, 0.7]), ([2.0, 99.0], [9.0, 0.3])):
        pace.remember(both, torch.tensor(seconds), busy)
    # Per step 1 for client 1 and 2 for client 0; client 2 is new, and taken to be as the mean of both.
    cohort: Any = SimpleNamespace(clients=(0, 1, 2))
    assert pace.expected_seconds(cohort, [range(2), range(2, 3)]) == [10, 4.5]
    assert pace.expected_busy() == [0.5, 0.3]


def test_of_a_large_population_the_last_seen_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_module, "MOST_CLIENTS", 3)
    train = TrainConfig.model_validate({"lr": 0.1, "batch_size": 1, "epochs": 1})
    pace = Pace(train, [1] * 9, num_ranks=1)
    for clients, seconds in (((0, 1), [5.0, 7.0]), ((2, 0), [1.0, 6.0]), ((3, 4), [9.0, 9.0])):
        cohort: Any = SimpleNamespace(clients=clients)
        pace.remember(cohort, torch.tensor(seconds), [0.0])
    everyone: Any = SimpleNamespace(clients=tuple(range(9)))
    each = pace.expected_seconds(everyone, [range(place, place + 1) for place in range(9)])
    # Clients 0, 3 and 4 are known; whoever is not is taken to be as the mean of a phase, of 6, 3.5 and 9 the median.
    assert each == [5.5, 6, 6, 9, 9, 6, 6, 6, 6]


def test_a_cohort_larger_than_that_is_remembered_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_module, "MOST_CLIENTS", 1)
    train = TrainConfig.model_validate({"lr": 0.1, "batch_size": 1, "epochs": 1})
    pace, cohort = Pace(train, [1] * 4, num_ranks=1), SimpleNamespace(clients=(0, 1, 2, 3))
    everyone: Any = cohort
    pace.remember(everyone, torch.tensor([1.0, 2.0, 3.0, 4.0]), [0.0])
    assert pace.expected_seconds(everyone, [range(place, place + 1) for place in range(4)]) == [1, 2, 3, 4]


def test_the_lower_bound_by_hand() -> None:
    assert lower_bound([4, 2, 2], [0, 0]) == 4
    assert lower_bound([3, 3, 3], [0, 0]) == 4.5
    assert lower_bound([9, 1], [0, 0]) == 9
    # 6 of work fill the second and the third up to 4; the first is busy until 10.
    assert lower_bound([3, 3], [10, 1, 1]) == 10
    assert lower_bound([2, 2, 2], [3, 0, 1]) == pytest.approx(10 / 3)
    assert lower_bound([2, 2], [5, 0, 1]) == 5
    assert lower_bound([6], [1, 2]) == 7
    assert lower_bound([], [1, 2]) == 2
    assert lower_bound([], [0]) == 0


def test_no_plan_is_below_the_bound_and_the_rule_is_near() -> None:
    """All plans of a few blocks on three ranks, some of them busy first."""
    stream = np.random.default_rng(1)
    for _ in range(20):
        costs, busy = stream.uniform(0, 5, 5).tolist(), stream.uniform(0, 4, 3).tolist()
        plans = itertools.product(range(3), repeat=5)
        shares = ([[place for place in range(5) if plan[place] == rank] for rank in range(3)] for plan in plans)
        best = min(max(loads(costs, busy, share)) for share in shares)
        found = max(loads(costs, busy, assign_blocks(costs, busy)))
        assert lower_bound(costs, busy) <= best + 1e-12
        assert best <= found + 1e-12
        assert found <= 2 * best


def test_a_rounds_timings_say_how_well_its_blocks_were_shared_out() -> None:
    sim = simulate([20, 9, 3], 1)
    _, records = play(sim, 2)
    for record in records:
        (phase,) = record.timing["phases"]
        seconds = sum(phase["train_seconds_per_client"].values())
        # One rank: whatever it does first, and then everything.
        assert phase["makespan"] == pytest.approx(phase["lower_bound"])
        assert phase["makespan"] > seconds > 0


def test_every_block_once_and_no_rank_far_above_the_mean() -> None:
    stream = np.random.default_rng(0)
    for _ in range(50):
        costs, ranks = stream.uniform(0, 10, stream.integers(1, 30)), int(stream.integers(1, 6))
        plan = assign_blocks(costs.tolist(), [0.0] * ranks)
        assert sorted(index for own in plan for index in own) == list(range(len(costs)))
        longest = max(sum(costs[index] for index in own) for own in plan)
        # What any list schedule keeps (Graham, 1966): the mean load, and less than one more block.
        assert longest <= costs.sum() / ranks + costs.max() * (1 - 1 / ranks) + 1e-9
