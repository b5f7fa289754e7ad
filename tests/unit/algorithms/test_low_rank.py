"""Sums of products of factors: what is made of the factors is what is made of the matrices."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.algorithms.parts.low_rank import DenseSum, FactoredSum, Pair, Spectrum, side_by_side, weighted_sum

G, O, D = 3, 11, 13  # noqa: E741  # as in the shapes' legend
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def sums(rank: int) -> tuple[Tensor, FactoredSum, DenseSum]:
    """A sum over three clients by a loop, and both forms of it."""
    pair = Pair(drawn(3, G, rank, D), drawn(3, G, O, rank, seed=1))
    matrix = np.zeros((G, O, D))
    for client, weight in enumerate(WEIGHTS.tolist()):
        for place in range(G):
            matrix[place] += weight * (pair.b[client, place].numpy() @ pair.a[client, place].numpy())
    found = weighted_sum(pair, WEIGHTS)
    assert isinstance(found, FactoredSum)
    return torch.from_numpy(matrix), found, DenseSum(torch.from_numpy(matrix))


def test_both_forms_are_the_sum() -> None:
    matrix, factored, dense = sums(2)
    other = Pair(drawn(G, 2, D, seed=2), drawn(G, O, 2, seed=3))
    right = drawn(G, D, 4, seed=4)
    for form in (factored, dense):
        torch.testing.assert_close(form.dense(), matrix)
        torch.testing.assert_close(form.times(right), matrix @ right)
        torch.testing.assert_close(form.minus(other).dense(), matrix - other.b @ other.a)
        assert form.energy == pytest.approx(matrix.square().sum().item())
        assert form.minus(other).energy == pytest.approx((matrix - other.b @ other.a).square().sum().item())


def test_both_forms_have_one_spectrum() -> None:
    matrix, factored, dense = sums(3)
    whole, small = dense.spectrum.first(9), factored.spectrum
    assert small.values.shape == (G, 9)
    for found, expected in zip(small, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(small.left * small.values[:, None] @ small.right, matrix)
    for place in range(G):
        torch.testing.assert_close(small.values[place].numpy(), np.linalg.svd(matrix[place].numpy())[1][:9])
        # The largest element of each right vector is positive.
        for vector in small.right[place]:
            assert vector.max() == vector.abs().max()


def test_the_form_follows_from_the_ranks() -> None:
    """As many ranks as the layer is wide make a matrix: the core would be no smaller."""
    assert isinstance(side_by_side(drawn(G, O, O - 1), drawn(G, O - 1, D)), FactoredSum)
    b, a = drawn(G, O, O), drawn(G, O, D)
    found = side_by_side(b, a)
    assert isinstance(found, DenseSum)
    torch.testing.assert_close(found.matrix, b @ a)
    grown = FactoredSum(b[..., :9], a[:, :9]).minus(Pair(a[:, 9:], b[..., 9:]))
    assert isinstance(grown, DenseSum)


def test_what_is_left_of_equal_products_is_nothing() -> None:
    pair = Pair(drawn(G, 2, D), drawn(G, O, 2))
    left = FactoredSum(pair.b, pair.a).minus(pair)
    assert 0 <= left.energy <= 1e-12 * pair.product.square().sum()


def test_fewer_values_than_ranks_leave_zeros() -> None:
    spectrum = Spectrum(drawn(G, O, 2), drawn(G, 2).abs(), drawn(G, 2, D))
    left, values, right = spectrum.first(5)
    assert (left.shape, values.shape, right.shape) == ((G, O, 5), (G, 5), (G, 5, D))
    assert torch.equal(values[:, :2], spectrum.values)
    assert not any(bool(part.any()) for part in (left[..., 2:], values[:, 2:], right[:, 2:]))
    assert all(
        torch.equal(*both) for both in zip(spectrum.first(1), (left[..., :1], values[:, :1], right[:, :1]), strict=True)
    )


@pytest.mark.parametrize("rank", [2, 5])
def test_no_client_and_zeros(rank: int) -> None:
    """A sum of nothing is nothing, in both forms."""
    pair = Pair(torch.zeros(2, G, rank, D), torch.zeros(2, G, O, rank))
    found = weighted_sum(pair, torch.full((2,), 0.5).double())
    assert found.energy == 0
    assert not found.spectrum.values.any()
    assert torch.isfinite(found.spectrum.right).all()
