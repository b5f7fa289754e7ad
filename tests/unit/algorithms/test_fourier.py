"""The paper's form of Fourier aggregation: by hand where it is small, by its properties where it is not."""

from typing import get_args

import pytest
import torch

from fedsim.algorithms.parts.fourier import (
    Form,
    from_matrices,
    low_amplitudes,
    to_matrices,
    window,
    with_low_amplitudes,
)

SHAPES = [(8, 3, 3, 3), (5, 7, 3, 3), (6, 4, 1, 1), (3, 16), (10, 7), (1, 1), (3, 2, 9)]
FRACTIONS = [0.0, 0.1, 0.7, 0.95, 1.0]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_convolutions_as_matrices() -> None:
    """Row (j, n), column (c, i): an element by its four indices."""
    weights = draw(2, 4, 3, 5, 2)
    matrices = to_matrices(weights)
    assert matrices.shape == (2, 1, 2 * 4, 3 * 5)
    assert matrices[1, 0, 1 * 4 + 3, 2 * 5 + 4] == weights[1, 3, 2, 4, 1]


@every_shape
def test_matrices_and_back(shape: tuple[int, ...]) -> None:
    weights = draw(3, *shape)
    assert torch.equal(from_matrices(to_matrices(weights), weights), weights)


def test_window_by_hand() -> None:
    assert window(7, 10, 0.6, "paper") == ((3, 2), (4, 0))
    assert window(7, 10, 0.6, "released") == ((2, 2), (3, 3))
    assert window(2, 100, 0.7, "released") == ((0, 0), (0, 0))
    assert window(2, 100, 0.0, "paper") == ((1, 0), (1, 0))
    assert window(6, 8, 1.0, "paper") == ((4, 2), (5, 0))
    assert window(7, 9, 1.0, "paper") == ((4, 3), (5, 0))


def test_the_smallest_matrix_by_hand() -> None:
    """One number is its own spectrum: the amplitude is its size, the phase its sign."""
    weights = torch.tensor([2.0, -6.0, 0.0]).view(3, 1, 1)
    matrices = to_matrices(weights)
    amplitudes = low_amplitudes(matrices, 0.5, "paper")
    assert amplitudes.flatten().tolist() == [2.0, 6.0, 0.0]
    mixed = with_low_amplitudes(matrices, amplitudes.mean(0), 0.5, "paper")
    assert mixed.flatten().tolist() == pytest.approx([8 / 3, -8 / 3, 8 / 3])


@every_shape
@pytest.mark.parametrize("form", get_args(Form))
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_equal_clients_stay_as_they_are(shape: tuple[int, ...], fraction: float, form: Form) -> None:
    """Bit for bit, since only what changes is transformed back."""
    weights = draw(1, *shape).repeat(4, *[1] * len(shape))
    matrices = to_matrices(weights)
    shared = low_amplitudes(matrices, fraction, form).double().mean(0)
    mixed = from_matrices(with_low_amplitudes(matrices, shared, fraction, form), weights)
    assert torch.equal(mixed, weights)


@every_shape
def test_exact_mean_at_fraction_one_with_equal_phases(shape: tuple[int, ...]) -> None:
    """Positive multiples of one tensor have its phases; the weighted mean of amplitudes is then that of weights."""
    factors, shares = torch.tensor([[0.5, 1.0, 4.0], [0.2, 0.5, 0.3]], dtype=torch.float64)
    weights = draw(1, *shape) * factors.view(3, *[1] * len(shape))
    matrices = to_matrices(weights)
    shared = torch.tensordot(shares, low_amplitudes(matrices, 1.0, "paper"), 1)
    mixed = from_matrices(with_low_amplitudes(matrices, shared, 1.0, "paper"), weights)
    mean = torch.tensordot(shares, weights, 1)
    torch.testing.assert_close(mixed, mean.expand_as(mixed), rtol=0, atol=1e-12)


@every_shape
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_inverse_is_real_and_does_what_it_says(shape: tuple[int, ...], fraction: float) -> None:
    """Against the whole spectrum: mean amplitudes inside the window, own ones outside, own phases everywhere.

    The release's form fails this: what it drops with the imaginary part is missing in its spectrum.
    """
    weights = draw(4, *shape)
    matrices = to_matrices(weights).double()
    height, width = matrices.shape[-2:]
    shared = low_amplitudes(matrices, fraction, "paper").mean(0)
    found = torch.fft.fft2(with_low_amplitudes(matrices, shared, fraction, "paper"))

    spectrum = torch.fft.fft2(matrices)
    half = [int(size * fraction / 2) for size in (height, width)]
    near = [
        torch.minimum(torch.arange(size), size - torch.arange(size)) <= b
        for size, b in zip((height, width), half, strict=True)
    ]
    inside = near[0][:, None] & near[1]
    amplitude = torch.where(inside, spectrum.abs().mean(0), spectrum.abs())
    torch.testing.assert_close(found, torch.polar(amplitude, spectrum.angle()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", get_args(Form))
def test_forms_differ_from_plain_weights(form: Form) -> None:
    weights = draw(4, 8, 3, 3, 3)
    matrices = to_matrices(weights)
    shared = low_amplitudes(matrices, 0.7, form).mean(0)
    mixed = from_matrices(with_low_amplitudes(matrices, shared, 0.7, form), weights)
    assert (mixed - weights).abs().max() > 0.1
    assert (mixed - weights.mean(0)).abs().max() > 0.1
