"""Fourier aggregation of weights against the numbers of PRR-FL's released code (prrfl_pfa.npz), float64 to 1e-7.

Ten times that is allowed, as for the other vectors. What the paper's window changes is tested in tests/unit.
"""

import re

import pytest
import torch
from torch import Tensor

from fedsim.algorithms.parts.fourier import from_matrices, low_amplitudes, to_matrices, with_low_amplitudes
from tests.golden.clip import load

GOLDEN = load("prrfl_pfa")
TOLERANCE = 1e-6
# The release's own, for any number of clients.
DIVISOR = 4
OUTPUTS = sorted(name for name in GOLDEN if "/L" in name)


def aggregate(weights_K: Tensor, fraction: float, divisor: int) -> Tensor:
    matrices = to_matrices(weights_K)
    shared = low_amplitudes(matrices, fraction, "released").sum(0) / divisor
    return from_matrices(with_low_amplitudes(matrices, shared, fraction, "released"), weights_K)


@pytest.mark.parametrize("name", OUTPUTS)
def test_released_form(name: str) -> None:
    """``_div4`` is the release for other than four clients, ``_divK`` the release with a mean in its place."""
    found = re.fullmatch(r"(.*)/L(.*)/(.*)", name)
    assert found
    start, fraction, kind = found.groups()
    weights_K = GOLDEN[f"{start}/in"]
    divisor = len(weights_K) if kind.endswith("divK") else DIVISOR
    result = aggregate(weights_K, float(fraction.replace("p", ".")), divisor)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, GOLDEN[name], rtol=0, atol=TOLERANCE)
