"""Exact sums: right values, no order, clear errors."""

import numpy as np
import pytest
import torch

from comm import ExactSum
from comm.exact import quantise
from fedsim.errors import UserError


def test_mean_and_sum_by_hand() -> None:
    total = ExactSum(3)
    values = torch.tensor([[1.0, -2.0], [3.0, 0.5], [0.0, 8.0]])
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    total.add_mean({"mean": values}, weights, (0, 1, 2))
    total.add_sum({"sum": values, "count": torch.tensor([2, 3, 4])}, (0, 1, 2))
    read = total.read(total.flat)
    assert read["mean"].tolist() == [1.25, 1.125]
    assert read["sum"].tolist() == [4.0, 6.5]
    assert read["count"].item() == 9
    assert [read[name].dtype for name in ("mean", "sum", "count")] == [torch.float64, torch.float64, torch.int64]


def test_one_rounding_to_the_grid() -> None:
    values = torch.tensor([[1 / 3], [2.0**-41 * 0.99], [2.0**-41 * 1.01]], dtype=torch.float64)
    ones = torch.ones(3, dtype=torch.float64)
    assert quantise(values, ones, 1.0, "x", (0, 1, 2)).tolist() == [[round(2**40 / 3)], [0], [1]]


def test_integer_buffers_come_back_whole() -> None:
    total = ExactSum(2)
    total.add_mean({"counter": torch.tensor([[3], [4]])}, torch.tensor([0.5, 0.5], dtype=torch.float64), (0, 1))
    value = total.read(total.flat)["counter"]
    assert value.dtype == torch.int64
    assert value.item() in (3, 4)


def test_complex_numbers_keep_both_parts() -> None:
    total = ExactSum(2)
    values = torch.tensor([[1 + 2j, -3j], [0.5 - 1j, 4 + 0j]])
    total.add_mean({"mean": values}, torch.tensor([0.5, 0.5], dtype=torch.float64), (0, 1))
    total.add_sum({"sum": values}, (0, 1))
    read = total.read(total.flat)
    assert read["mean"].tolist() == [0.75 + 0.5j, 2 - 1.5j]
    assert read["sum"].tolist() == [1.5 + 1j, 4 - 3j]


def test_no_order() -> None:
    """Any permutation, cut into blocks and number of ranks gives the same bits."""
    stream = np.random.default_rng(0)
    num_clients = 23
    values = torch.from_numpy(
        stream.normal(size=(num_clients, 5, 3)) * 10.0 ** stream.integers(-9, 4, (num_clients, 5, 3))
    )
    weights = torch.from_numpy(stream.dirichlet(np.ones(num_clients)))
    seen = []
    for _ in range(20):
        ranks = [ExactSum(num_clients) for _ in range(stream.integers(1, 5))]
        for rank in ranks:
            rank.add_mean({"v": values[:0]}, weights[:0], ())
            rank.add_sum({"s": values[:0]}, ())
        order = stream.permutation(num_clients)
        cuts = np.sort(stream.integers(0, num_clients, 4))
        for block in np.split(order, cuts):
            rank = ranks[stream.integers(len(ranks))]
            rank.add_mean({"v": values[block]}, weights[block], block.tolist())
            rank.add_sum({"s": values[block]}, block.tolist())
        seen.append(sum(rank.flat for rank in ranks))
    assert all(torch.equal(flat, seen[0]) for flat in seen)
    read = ranks[0].read(seen[0])
    torch.testing.assert_close(read["v"], torch.tensordot(weights, values, 1), rtol=0, atol=num_clients * 2.0**-41)
    torch.testing.assert_close(read["s"], values.sum(0), rtol=0, atol=num_clients * 2.0**-41)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2.0**21 + 1])
@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 2)])
def test_what_has_no_place_is_named(bad: float, shape: tuple[int, ...]) -> None:
    values = torch.zeros(shape)
    values[1].view(-1)[-1] = bad
    with pytest.raises(UserError, match=r"client 7, tensor blocks\.0\.lora_b: found an element"):
        ExactSum(2).add_mean({"blocks.0.lora_b": values}, torch.ones(2, dtype=torch.float64), (4, 7))


def test_range_of_sums_shrinks_with_the_number_of_clients() -> None:
    limit = 2.0**22 / 1000
    total = ExactSum(1000)
    for client in range(1000):
        total.add_sum({"x": torch.full((1, 1), limit if client % 2 else -limit, dtype=torch.float64)}, (client,))
    assert total.read(total.flat)["x"].item() == 0
    with pytest.raises(UserError, match=r"client 3, tensor x"):
        total.add_sum({"x": torch.full((1, 1), limit * 1.01)}, (3,))
    with pytest.raises(UserError, match=r"client 3, tensor n"):
        total.add_sum({"n": torch.tensor([torch.iinfo(torch.int64).min])}, (3,))


def test_the_largest_values_do_not_wrap_around() -> None:
    total = ExactSum(4)
    for client in range(4):
        total.add_sum({"x": torch.full((1,), 2.0**20, dtype=torch.float64)}, (client,))
    assert total.read(total.flat)["x"].item() == 2.0**22


def test_the_order_of_names_does_not_matter() -> None:
    terms = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor([[3.0]]), "c": torch.tensor([[4.0]])}
    one, other = ExactSum(1), ExactSum(1)
    one.add_sum(terms, (0,))
    other.add_sum(dict(sorted(terms.items())), (0,))
    assert torch.equal(one.flat, other.flat)
    assert {name: value.tolist() for name, value in one.read(other.flat).items()} == {
        "a": [3.0],
        "b": [1.0, 2.0],
        "c": [4.0],
    }
