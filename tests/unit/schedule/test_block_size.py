"""How many clients train as one batch with ``per_block: auto``."""

import math
from collections.abc import Sequence

import pytest
import torch

from fedsim.schedule.block_size import choose_block_size, most_even
from tests.helpers import make_config

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.parametrize(
    ("steps", "most", "expected"),
    [
        # By hand, two ranks and no cost of a step: 5 would leave 15 and 10 clients to them, 4 leaves 13 and 12.
        ([2] * 25, 5, 4),
        # 4 would leave 11 and 8, 3 leaves 10 and 9.
        ([4] * 19, 4, 3),
        # Six blocks of the largest size share themselves out among one, two and three ranks.
        ([1] * 60, 10, 10),
        # One client of ten steps and ten of one: two ranks need 12 or 11 steps, three as many.
        ([10] + [1] * 10, 3, 2),
        ([3] * 7, 1, 1),
    ],
)
def test_blocks_share_themselves_out_evenly(steps: list[int], most: int, expected: int) -> None:
    assert most_even(steps, most, 0.0) == expected


def test_what_a_step_takes_besides_asks_for_larger_blocks() -> None:
    assert most_even([2] * 25, 5, 0.0) == 4
    assert most_even([2] * 25, 5, 100.0) == 5


def chosen(sizes: Sequence[int], num_elements: int, **train: int) -> int:
    config = make_config(clients={"count": len(sizes)}, train={"batch_size": 16, **train})
    return choose_block_size(config, sizes, num_elements, 2, CPU)


@pytest.mark.parametrize("count", [6, 13, 19, 25, 60, 100])
def test_there_are_at_least_six_blocks_of_at_most_two_mebibytes(count: int) -> None:
    for elements in (64, 4096, MIB):
        size = chosen([20] * count, elements)
        assert size == 1 or size * elements * 16 * 4 <= 2 * MIB
        # As many clients as make six blocks, where the last may be left with none.
        assert size <= math.ceil(count / 6)


def test_steps_and_not_images_count_where_all_train_as_many() -> None:
    ragged = [160] * 5 + [16] * 20
    assert chosen(ragged, 4096, steps=3) == chosen([16] * 25, 4096) == 4
    assert chosen(ragged, 4096) == 3


def test_of_very_many_clients_the_largest_fitting_block_is_taken() -> None:
    assert chosen(range(1, 10_001), MIB // 32) == 1
    assert chosen([1] * 1000, 2**13) == 4


def test_clients_without_images_do_not_count() -> None:
    assert chosen([16] * 25 + [0], 4096) == 4
