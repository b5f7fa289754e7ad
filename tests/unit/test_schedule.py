"""Blocks to ranks: longest first onto the least loaded."""

import numpy as np

from comm import assign_blocks


def test_by_hand() -> None:
    # 7 to rank 0, 5 to rank 1, 4 to rank 1 (5 < 7), 3 to rank 0 (7 < 9), 1 to rank 1 (9 < 10)
    assert assign_blocks([3, 7, 5, 1, 4], 2) == [[1, 0], [2, 4, 3]]


def test_ties_go_to_the_lower_index() -> None:
    assert assign_blocks([2, 2, 2, 2], 2) == [[0, 2], [1, 3]]


def test_more_ranks_than_blocks() -> None:
    assert assign_blocks([1.0], 3) == [[0], [], []]
    assert assign_blocks([], 2) == [[], []]


def test_every_block_once_and_no_rank_far_above_the_mean() -> None:
    stream = np.random.default_rng(0)
    for _ in range(50):
        costs, ranks = stream.uniform(0, 10, stream.integers(1, 30)), int(stream.integers(1, 6))
        plan = assign_blocks(costs.tolist(), ranks)
        assert sorted(index for own in plan for index in own) == list(range(len(costs)))
        longest = max(sum(costs[index] for index in own) for own in plan)
        # What any list schedule keeps (Graham, 1966): the mean load, and less than one more block.
        assert longest <= costs.sum() / ranks + costs.max() * (1 - 1 / ranks) + 1e-9
