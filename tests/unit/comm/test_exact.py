"""Exact sums: right values, no order, clear errors."""

import numpy as np
import pytest
import torch

from fedsim.comm.columns import COLUMNS_AT_ONCE
from fedsim.comm.exact import ExactSum
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


@pytest.mark.parametrize(("largest", "bits"), [(2.0**21, 40), (2.5, 40), (2.0, 60), (2.0**-19, 80), (2.0**-30, 80)])
def test_one_rounding_to_the_finest_grid_that_the_largest_element_leaves_room_for(largest: float, bits: int) -> None:
    step = 2.0**-bits
    values = torch.tensor([[largest, 0.49 * step, 0.51 * step, -1.5 * step, 0.0]], dtype=torch.float64)
    total = ExactSum(1)
    total.add_mean({"x": values}, torch.ones(1, dtype=torch.float64), (0,))
    assert total.read(total.flat)["x"].tolist() == [largest, 0, step, -2 * step, 0]
    assert total.below_grid(total.flat) == 1 / 4


@pytest.mark.parametrize("num_clients", [12, 1_000, 100_000])
@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-8, 1e-9, 1e-10, 1e-12])
def test_small_changes_of_many_clients_arrive(num_clients: int, size: float) -> None:
    """A fixed grid of 2^-40 lost 1e-3 of changes of 1e-9 from 12 clients, and all of 1e-8 from 100,000."""
    values = torch.from_numpy(size * np.random.default_rng(0).normal(size=(num_clients, 20)))
    weights = torch.full((num_clients,), 1 / num_clients, dtype=torch.float64)
    total = ExactSum(num_clients)
    total.add_mean({"x": values}, weights, range(num_clients))
    mean = total.read(total.flat)["x"]
    exact = torch.from_numpy(values.numpy().astype(np.longdouble).mean(0).astype(np.float64))
    assert ((mean - exact).norm() / exact.norm()).item() < 2e-7
    assert total.below_grid(total.flat) == 0


def test_sums_of_many_clients_have_room() -> None:
    """A fixed grid refused a sum of 100,000 amplitudes above 42."""
    total = ExactSum(100_000)
    total.add_sum({"x": torch.tensor([[1e4, 1e-3]])}, (0,))
    assert total.read(total.flat)["x"].tolist() == pytest.approx([1e4, 1e-3], rel=1e-3)


def test_the_grid_does_not_depend_on_which_rank_has_the_largest_element() -> None:
    values = torch.tensor([[1e-9], [3.0], [1e-13]], dtype=torch.float64)
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    seen = []
    for cut in ([[0], [1], [2]], [[0, 1, 2], [], []], [[2], [0, 1], []], [[], [], [1, 0, 2]]):
        ranks = [ExactSum(3) for _ in cut]
        for rank, places in zip(ranks, cut, strict=True):
            rank.add_mean({"x": values[:0], "count": torch.zeros(0, dtype=torch.int64)}, weights[:0], ())
            rank.add_mean({"x": values[places], "count": torch.tensor(places)}, weights[places], places)
        seen.append(over_ranks(ranks))
    assert all(torch.equal(flat, seen[0]) for flat in seen)


def test_wide_payloads_are_cut_into_columns_without_changing_a_bit() -> None:
    stream = torch.Generator().manual_seed(0)
    sizes = (COLUMNS_AT_ONCE // 3, COLUMNS_AT_ONCE + 5, 1, 0, COLUMNS_AT_ONCE // 2, COLUMNS_AT_ONCE // 2)
    terms = {f"{place}": torch.randn(2, size, generator=stream) for place, size in enumerate(sizes)}
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    total = ExactSum(2)
    total.add_mean(terms, weights, (0, 1))
    read = total.read(total.flat)
    assert {name: value.numel() for name, value in read.items()} == {str(n): size for n, size in enumerate(sizes)}
    for name, value in terms.items():
        alone = ExactSum(2)
        alone.add_mean({name: value}, weights, (0, 1))
        assert torch.equal(read[name], alone.read(alone.flat)[name])


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


def over_ranks(ranks: list[ExactSum]) -> torch.Tensor:
    """What all ranks' sums give together."""
    peaks = torch.stack([rank.peaks for rank in ranks]).amax(0)
    for rank in ranks:
        rank.agree(peaks)
    return torch.stack([rank.flat for rank in ranks]).sum(0)


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
        seen.append(over_ranks(ranks))
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
    limit = 2.0**62 / 1000
    total = ExactSum(1000)
    for client in range(1000):
        total.add_sum({"x": torch.full((1, 1), limit if client % 2 else -limit, dtype=torch.float64)}, (client,))
    assert total.read(total.flat)["x"].item() == 0
    with pytest.raises(UserError, match=r"client 3, tensor x"):
        total.add_sum({"x": torch.full((1, 1), limit * 1.01)}, (3,))
    with pytest.raises(UserError, match=r"client 3, tensor n"):
        ExactSum(1000).add_sum({"n": torch.tensor([torch.iinfo(torch.int64).min])}, (3,))


def test_shares_have_one_grid_of_a_range_of_their_own() -> None:
    total = ExactSum(1000)
    values = torch.tensor([[0.25, 2.0**-40, 2.0**-42, -1.0], [0.5, 2.0**-40, 2.0**-42, 3.0]])
    total.add_shares({"s": values}, (0, 1))
    assert total.read(total.flat)["s"].tolist() == [0.75, 2.0**-39, 0.0, 2.0]
    with pytest.raises(UserError, match=r"client 4, tensor s"):
        total.add_shares({"s": torch.full((1, 4), 2.0**22 / 999)}, (4,))


def test_numbers_below_the_grid_are_counted() -> None:
    small = torch.tensor([[2.0**-70, 0.0, 1.0, 2.0**-30], [2.0**-30, 2.0**-70, 0.0, 2.0**-30]])
    counting, other = ExactSum(2), ExactSum(2, counting=False)
    for total in (counting, other):
        total.add_sum({"x": small[:, :2], "y": small[:, 2:]}, (0, 1))
    assert counting.below_grid(counting.flat) == 2 / 6
    assert other.below_grid(other.flat) == 0
    assert torch.equal(counting.flat[:-2], other.flat[:-2])


def test_the_largest_values_do_not_wrap_around() -> None:
    total = ExactSum(4)
    for client in range(4):
        total.add_sum({"x": torch.full((1,), 2.0**60, dtype=torch.float64)}, (client,))
    assert total.read(total.flat)["x"].item() == 2.0**62


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
