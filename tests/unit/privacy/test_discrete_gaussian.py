"""Draws of the discrete Gaussian against its exact probabilities, and the lattice."""

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim.errors import UserError
from fedsim.privacy import discrete_gaussian
from fedsim.privacy.discrete_gaussian import STEPS, Lattice, draw
from fedsim.seeding import numpy_stream

DRAWS = 20_000


def probabilities(sigma: int) -> dict[int, float]:
    ks = np.arange(-12 * sigma, 12 * sigma + 1)
    mass = np.exp(-(ks**2) / (2 * sigma**2))
    return dict(zip(ks.tolist(), (mass / mass.sum()).tolist(), strict=True))


@pytest.mark.parametrize("sigma", [1, 2, 7])
@pytest.mark.parametrize("margin", [1e-13, 0.3], ids=["float64", "decimal"])
def test_against_the_exact_probabilities(sigma: int, margin: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a wide margin most draws are decided by the digits beyond float64."""
    monkeypatch.setattr(discrete_gaussian, "MARGIN", margin)
    count = DRAWS if margin < 0.1 else 2_000
    found = draw(numpy_stream(5, f"{sigma}/{margin}"), sigma, count)
    exact = probabilities(sigma)
    # The tails together are one cell with an expected count of some ten.
    cells = [k for k, share in exact.items() if share * count >= 10]
    seen = [int((found == k).sum()) for k in cells]
    expected = [exact[k] * count for k in cells]
    seen.append(count - sum(seen))
    expected.append(count - sum(expected))
    assert stats.chisquare(seen, expected).pvalue > 1e-3


def test_large_deviations_are_normal() -> None:
    found = draw(numpy_stream(1, "large"), STEPS + 12_345, DRAWS) / (STEPS + 12_345)
    assert stats.kstest(found, "norm").pvalue > 1e-3


def test_the_same_stream_gives_the_same_draws() -> None:
    one, other = (draw(numpy_stream(3, "again"), STEPS, 1000) for _ in range(2))
    assert (one == other).all()
    assert len(draw(numpy_stream(3, "none"), STEPS, 0)) == 0


@pytest.mark.parametrize("sigma", [1e-9, 0.37, 1.0, 12_345.6])
def test_a_lattice_has_the_noise_asked_for(sigma: float) -> None:
    lattice = Lattice.for_noise(sigma)
    assert sigma <= lattice.deviation * lattice.step <= sigma * (1 + 2 / STEPS)
    assert STEPS <= lattice.deviation <= 2 * STEPS
    assert np.frexp(lattice.step)[0] == 0.5  # a power of two
    values = torch.tensor([0.0, 2.5, -3.49]) * sigma
    assert (lattice.round(values.double()).double() * lattice.step - values).abs().max() <= lattice.step


def test_what_no_lattice_holds_is_refused() -> None:
    with pytest.raises(UserError, match=r"privacy.noise_multiplier: found a change of 1e\+12 beside noise of 0.001"):
        Lattice.for_noise(1e-3).round(torch.tensor([1e12], dtype=torch.float64))
