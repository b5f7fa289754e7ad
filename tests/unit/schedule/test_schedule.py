"""Blocks to ranks: longest first onto the least loaded."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fedsim.config.train import TrainConfig
from fedsim.schedule.pace import Pace
from fedsim.schedule.ranks import assign_blocks


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


def test_every_block_once_and_no_rank_far_above_the_mean() -> None:
    stream = np.random.default_rng(0)
    for _ in range(50):
        costs, ranks = stream.uniform(0, 10, stream.integers(1, 30)), int(stream.integers(1, 6))
        plan = assign_blocks(costs.tolist(), [0.0] * ranks)
        assert sorted(index for own in plan for index in own) == list(range(len(costs)))
        longest = max(sum(costs[index] for index in own) for own in plan)
        # What any list schedule keeps (Graham, 1966): the mean load, and less than one more block.
        assert longest <= costs.sum() / ranks + costs.max() * (1 - 1 / ranks) + 1e-9
