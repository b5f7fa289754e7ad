"""Who has which images, in two arrays for any number of clients."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from fedsim.data import ClientImages, Dataset, partition_clients
from fedsim.data.client_images import even
from tests.unit.data.test_data_partition import clients, make_dataset

PARTS = [np.array([5, 0, 2]), np.array([], np.int64), np.array([11])]


def test_it_reads_like_the_list() -> None:
    found = ClientImages.of(PARTS)
    assert len(found) == 3
    assert [part.tolist() for part in found] == [[5, 0, 2], [], [11]]
    assert [part.tolist() for part in found[1:]] == [[], [11]]
    assert found[-1].tolist() == found[np.int64(2)].tolist() == [11]
    for place in (3, -4):
        with pytest.raises(IndexError):
            found[place]
    assert found.images.tolist() == np.concatenate(found).tolist() == [5, 0, 2, 11]
    assert found.owners().tolist() == [0, 0, 0, 2]
    assert list(found.sizes) == [3, 0, 1]
    assert all(type(size) is int for size in found.sizes)
    assert ClientImages.of(found) is found
    assert list(ClientImages.of([]).sizes) == []


def test_owners_keep_the_order_of_the_images() -> None:
    found = ClientImages.owned(np.array([7, 3, 9, 1]), np.array([2, 0, 2, 0]), 4)
    assert [part.tolist() for part in found] == [[3, 1], [], [7, 9], []]


def test_clients_that_are_left_out_keep_their_number() -> None:
    found = ClientImages.of(PARTS).where(np.array([False, True, True]))
    assert [part.tolist() for part in found] == [[], [], [11]]


@pytest.mark.parametrize(("total", "count"), [(10, 3), (2, 5), (0, 2), (12, 4)])
def test_pieces_are_even(total: int, count: int) -> None:
    assert even(total, count).tolist() == [len(piece) for piece in np.array_split(np.arange(total), count)]


@pytest.fixture(scope="module")
def large() -> Dataset:
    return make_dataset(num_images=200_000, num_classes=2)


@pytest.mark.parametrize(
    ("partition", "most"),
    [
        ({"name": "iid"}, 60),
        ({"name": "shards", "per_client": 1}, 100),
        ({"name": "dirichlet", "alpha": 0.1, "min_size": 0, "form": "paper"}, 150),
    ],
)
def test_a_partition_takes_some_bytes_for_each_client_and_no_object(
    partition: dict[str, Any], most: int, large: Dataset
) -> None:
    """An array apiece would be 112 bytes, and as much again for each step on the way; here are 1.2 images each."""
    count = len(large.train) * 5 // 6
    tracemalloc.start()
    try:
        parts = partition_clients(large, clients(count, **partition), 0)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(parts) == count
    assert kept < 20 * count
    assert peak < most * count
