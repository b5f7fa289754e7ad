"""Exact sums: floats become int64 multiples of a fixed grid, and integer addition has no order.

Any number of ranks, blocks and reduction trees gives the same bits, because nothing is rounded after the one
rounding of each client's own term. Shapes: K clients in a block, then the shape of the tensor that is summed.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedsim.errors import UserError

GRID_BITS = 40
# Terms of a sum together stay below 2^62, so that neither a partial sum nor the total can wrap around.
SUM_BITS = 62
# Whole numbers up to this are exact in float64, through which all terms go.
WHOLE_BITS = 53


def quantise(
    values_K: Tensor,
    weights_K: Tensor,
    limit: float,
    name: str,
    clients: Sequence[int],
    bits: int = GRID_BITS,
    who: str = "client",
) -> Tensor:
    """Return round(weight * value * 2^bits) as int64, shape of ``values_K`` (K, ...).

    ``weights_K`` is float64 (K,). Raises UserError naming client (or ``who`` else) and tensor where a value is not
    finite or its absolute value exceeds ``limit``.
    """
    weights = weights_K.to(values_K.device).reshape(-1, *[1] * (values_K.dim() - 1))
    bad = ~((values_K >= -limit) & (values_K <= limit))
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        worst = values_K[row][bad[row]][0].item()
        raise UserError(
            f"{who} {clients[row]}, tensor {name}",
            f"an element {worst:g}",
            f"finite values of at most {limit:g}, the range of the exact sum (did the training diverge?)",
        )
    return (values_K.double() * (weights * 2.0**bits)).round_().to(torch.int64)


class ExactSum:
    """Running sums of named tensors over clients, held as int64; ``flat`` is what the ranks add up.

    ``num_terms`` bounds the number of clients that all ranks together will add. Complex numbers travel as pairs.
    ``who``: what the terms belong to, if not to clients, for messages.
    """

    def __init__(self, num_terms: int, who: str = "client") -> None:
        self.num_terms = num_terms
        self._who = who
        self._sums: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._bits: dict[str, int] = {}

    def add_mean(self, terms: Mapping[str, Tensor], weights_K: Tensor, clients: Sequence[int]) -> None:
        """Add weighted terms (K, ...) to be read as a mean; the weights of all clients sum to one."""
        for name, values in terms.items():
            self._add(name, values, weights_K, 2.0 ** (SUM_BITS - 1 - GRID_BITS), clients, GRID_BITS)

    def add_sum(self, terms: Mapping[str, Tensor], clients: Sequence[int]) -> None:
        """Add terms (K, ...) as they are; whole numbers need no grid, and may be as large as float64 counts."""
        ones = torch.ones(len(clients), dtype=torch.float64)
        for name, values in terms.items():
            is_whole = not (values.is_floating_point() or values.is_complex())
            bits, range_bits = (0, WHOLE_BITS) if is_whole else (GRID_BITS, SUM_BITS - GRID_BITS)
            self._add(name, values, ones, 2.0**range_bits / self.num_terms, clients, bits)

    def _add(self, name: str, values: Tensor, weights: Tensor, limit: float, clients: Sequence[int], bits: int) -> None:
        reals = torch.view_as_real(values) if values.is_complex() else values
        total = quantise(reals, weights, limit, name, clients, bits, self._who).sum(0)
        if name in self._sums:
            self._sums[name] += total
        else:
            self._sums[name], self._dtypes[name], self._bits[name] = total, values.dtype, bits

    @property
    def flat(self) -> Tensor:
        """All sums in the order of their names, int64 (P,)."""
        # The order of adding may follow a checkpoint, which is read in another one on every rank.
        return torch.cat([self._sums[name].flatten() for name in sorted(self._sums)])

    def read(self, flat: Tensor) -> dict[str, Tensor]:
        """Cut a reduced ``flat`` back into named float64 or complex128 tensors, integers into their own dtype."""
        sums = sorted(self._sums.items())
        parts = flat.split([total.numel() for _, total in sums])
        result = {}
        for (name, total), part in zip(sums, parts, strict=True):
            value = part.reshape(total.shape).double() * 2.0 ** -self._bits[name]
            dtype = self._dtypes[name]
            if dtype.is_complex:
                result[name] = torch.view_as_complex(value)
            else:
                result[name] = value if dtype.is_floating_point else value.round().to(dtype)
        return result
