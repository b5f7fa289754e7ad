"""The exact sum's compiled pass has the bits, and the counts, of PyTorch's operators."""

import pytest
import torch

from fedsim.comm import columns
from fedsim.comm.exact import ExactSum
from fedsim.kernels import build
from fedsim.kernels.sums import add_multiples, compiles, scaled

pytestmark = pytest.mark.skipif(build.problem() is not None, reason=str(build.problem()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 7, 8, 2047, 5003])
def test_every_number_goes_to_its_nearest_multiple(dtype: torch.dtype, size: int) -> None:
    stream = torch.Generator().manual_seed(size)
    # A slice of wider rows, with ties, zeros, and numbers that fall to zero.
    values = torch.randn(3, size + 5, generator=stream, dtype=dtype)[:, 2 : 2 + size]
    values[0, : size // 2] *= 2.0**-30
    values[1, ::3] = 0
    values[2] = torch.arange(size, dtype=dtype) / 2 - 1
    scales = torch.tensor([2.0**20, 0.0, 0.75, 0.0, 1.0, 0.0])[::2]  # neither in one piece nor float64
    sums = torch.full((size,), 5)
    assert compiles(values)
    sent, found = add_multiples(values, scales, sums)
    wanted = scaled(values, scales.double())
    assert torch.equal(sums, 5 + wanted.round().to(torch.int64).sum(0))
    assert (sent, found) == (wanted.count_nonzero(), wanted.round().count_nonzero())


def test_exact_sums_are_the_same_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = torch.Generator().manual_seed(1)
    terms = {
        "wide": torch.randn(2, 70_000, generator=stream) * 1e-20,
        "small": torch.randn(2, 5, 3, generator=stream).double(),
        "complex": torch.randn(2, 4, generator=stream, dtype=torch.complex64),
        "half": torch.randn(2, 6, generator=stream).bfloat16(),
        "counts": torch.tensor([[3], [0]]),
    }
    terms["wide"][:, ::2] = 0

    def added() -> ExactSum:
        total = ExactSum(2)
        total.add_mean(terms, torch.tensor([0.25, 0.75], dtype=torch.float64), (0, 1))
        total.add_sum(terms, (0, 1))
        return total

    compiled = added()
    monkeypatch.setattr(columns, "compiles", lambda _: False)
    plain = added()
    assert torch.equal(compiled.flat, plain.flat)
    assert compiled.below_grid(compiled.flat) == plain.below_grid(plain.flat) > 0
