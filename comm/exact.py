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


def quantise(values_K: Tensor, weights_K: Tensor, limit: float, name: str, clients: Sequence[int]) -> Tensor:
    """Return round(weight * value * 2^40) as int64, shape of ``values_K`` (K, ...).

    ``weights_K`` is float64 (K,). Raises UserError naming client and tensor where a value is not finite or its
    absolute value exceeds ``limit``.
    """
    weights = weights_K.to(values_K.device).reshape(-1, *[1] * (values_K.dim() - 1))
    bad = ~((values_K >= -limit) & (values_K <= limit))
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        worst = values_K[row][bad[row]][0].item()
        raise UserError(
            f"client {clients[row]}, tensor {name}",
            f"an element {worst:g}",
            f"finite values of at most {limit:g}, the range of the exact sum (did the training diverge?)",
        )
    return (values_K.double() * (weights * 2.0**GRID_BITS)).round_().to(torch.int64)


class ExactSum:
    """Running sums of named tensors over clients, held as int64; ``flat`` is what the ranks add up.

    ``num_terms`` bounds the number of clients that all ranks together will add. Complex numbers travel as pairs.
    """

    def __init__(self, num_terms: int) -> None:
        self.num_terms = num_terms
        self._sums: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}

    def add_mean(self, terms: Mapping[str, Tensor], weights_K: Tensor, clients: Sequence[int]) -> None:
        """Add weighted terms (K, ...) to be read as a mean; the weights of all clients sum to one."""
        self._add(terms, weights_K, 2.0 ** (SUM_BITS - 1 - GRID_BITS), clients)

    def add_sum(self, terms: Mapping[str, Tensor], clients: Sequence[int]) -> None:
        """Add terms (K, ...) as they are."""
        ones = torch.ones(len(clients), dtype=torch.float64)
        self._add(terms, ones, 2.0 ** (SUM_BITS - GRID_BITS) / self.num_terms, clients)

    def _add(self, terms: Mapping[str, Tensor], weights: Tensor, limit: float, clients: Sequence[int]) -> None:
        for name, values in terms.items():
            reals = torch.view_as_real(values) if values.is_complex() else values
            total = quantise(reals, weights, limit, name, clients).sum(0)
            if name in self._sums:
                self._sums[name] += total
            else:
                self._sums[name], self._dtypes[name] = total, values.dtype

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
            value = part.reshape(total.shape).double() * 2.0**-GRID_BITS
            dtype = self._dtypes[name]
            if dtype.is_complex:
                result[name] = torch.view_as_complex(value)
            else:
                result[name] = value if dtype.is_floating_point else value.round().to(dtype)
        return result
