"""Some tensors of an exact sum side by side, and what they add up to on each grid, see ``exact.py``.

Shapes: K clients in a block, T tensors with P numbers in all.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from fedsim.errors import UserError
from fedsim.kernels.sums import add_multiples, compiles, scaled

# Small tensors are summed side by side up to so many numbers, since each operation has a price of its own; of a large
# one so many at once, which stay in a CPU's cache.
COLUMNS_AT_ONCE = 2**16

Refuse = Callable[[str, Tensor], UserError]


def side_by_side(terms: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Cut tensors (K, ...), in the order of their names, into groups of few numbers, or of a single tensor."""
    some: dict[str, Tensor] = {}
    for name in sorted(terms):
        # The order of adding may follow a checkpoint, which is read in another one on every rank.
        numbers = sum(math.prod(_reals(value).shape[1:]) for value in (*some.values(), terms[name]))
        if some and numbers > COLUMNS_AT_ONCE:
            yield some
            some = {}
        some[name] = terms[name]
    if some:
        yield some


class Columns:
    """Tensors side by side, P numbers of T tensors, summed on every grid that some of them have fitted so far."""

    def __init__(
        self, how: str, place: int, terms: Mapping[str, Tensor], limits: Mapping[int, float], counting: bool
    ) -> None:
        self.how = how
        self._place = place
        self.limits = limits
        self._counting = counting
        first = next(iter(terms.values()))
        self._dtypes = {name: value.dtype for name, value in terms.items()}
        self._shapes = {name: _reals(value).shape[1:] for name, value in terms.items()}
        self.sizes = [math.prod(shape) for shape in self._shapes.values()]
        self.peaks_T = torch.zeros(len(terms), dtype=torch.float64)
        self._zeros = partial(torch.zeros, dtype=torch.int64, device=first.device)
        # The sums on a grid and what was lost on it, from the first addition on, until no tensor fits it any more.
        self._sums_P: dict[int, Tensor] = {}
        self._lost_T: dict[int, Tensor] = {}
        self._num_sent = self._zeros(())

    def stream(self, bits: int) -> str:
        """Return the name of the masks on a grid."""
        return f"{self.how}/{self._place}/{bits}"

    def add(
        self,
        terms: Mapping[str, Tensor],
        weights_K: Tensor,
        refuse: Refuse,
        mask: Callable[[str, int], Tensor] | None = None,
    ) -> None:
        """Add the terms (K, ...) of a block, or raise what ``refuse`` makes of a tensor that no grid fits.

        ``mask``: by stream and number of columns, int64 (K, P) to add before anything is summed.
        """
        if not len(weights_K):
            return
        rows = [_reals(terms[name]).reshape(len(weights_K), -1) for name in self._shapes]
        # Whole numbers have absolute values in float64 only.
        is_one = len(rows) == 1 and rows[0].is_floating_point()
        values_KP = rows[0] if is_one else torch.cat([row.double() for row in rows], dim=1)
        peaks_T = torch.stack([_largest(part) for part in values_KP.split(self.sizes, dim=1)]).cpu()
        if not (peaks_T <= max(self.limits.values())).all():
            parts = zip(self._shapes, rows, peaks_T.tolist(), strict=True)
            raise next(refuse(name, part) for name, part, peak in parts if not peak <= max(self.limits.values()))
        self.peaks_T = torch.maximum(self.peaks_T, peaks_T)
        fitting = [bits for bits, limit in self.limits.items() if (self.peaks_T <= limit).any()]
        self._sums_P = {bits: self._sum(bits) for bits in fitting}
        self._lost_T = {bits: self._lost(bits) for bits in fitting}
        masks = {bits: mask(self.stream(bits), sum(self.sizes)) for bits in fitting if mask is not None}
        for piece in self._pieces(values_KP):
            self._add_piece(values_KP[:, piece], weights_K.to(values_KP.device), piece, masks)

    def _pieces(self, values_KP: Tensor) -> list[slice]:
        """Columns that are added at once: on a CPU no more than stay in its cache."""
        num_columns = values_KP.shape[1]
        step = COLUMNS_AT_ONCE if values_KP.device.type == "cpu" else num_columns
        return [slice(start, start + step) for start in range(0, num_columns, max(1, step))]

    def _add_piece(self, values_KP: Tensor, weights_K: Tensor, piece: slice, masks: Mapping[int, Tensor]) -> None:
        """Add some columns on every grid that a tensor fits."""
        is_compiled = not masks and compiles(values_KP)
        counts = self._counting
        # Coarsest first: where nothing is lost there, nothing is on finer grids, and nobody has to count.
        for place, bits in enumerate(sorted(self._sums_P)):
            scales_K, sums_P = weights_K * 2.0**bits, self._sums_P[bits][piece]
            num_sent = num_found = 0
            # What does not fit this grid becomes some number here that nobody reads.
            if is_compiled:
                num_sent, num_found = add_multiples(values_KP, scales_K, sums_P)
            else:
                scaled_KP = scaled(values_KP, scales_K)
                if counts:
                    num_sent = int(scaled_KP.count_nonzero())
                multiples_KP = scaled_KP.round_().to(torch.int64)
                if counts:
                    num_found = int(multiples_KP.count_nonzero())
                if masks:
                    multiples_KP += masks[bits][:, piece].to(multiples_KP.device)
                sums_P += multiples_KP[0] if len(multiples_KP) == 1 else multiples_KP.sum(0)
            if counts:
                self._num_sent += num_sent if place == 0 else 0
                counts = num_found != num_sent
            if counts:
                scaled_KP = scaled(values_KP, scales_K)
                self._lost_T[bits] += self._by_tensor((scaled_KP != 0) & (scaled_KP.round() == 0))

    def _sum(self, bits: int) -> Tensor:
        found = self._sums_P.get(bits)
        return self._zeros(sum(self.sizes)) if found is None else found

    def _lost(self, bits: int) -> Tensor:
        found = self._lost_T.get(bits)
        return self._zeros(len(self.sizes)) if found is None else found

    def _by_tensor(self, is_KP: Tensor) -> Tensor:
        """How many of some columns hold, by tensor; columns are in pieces only where there is a single one."""
        sizes = self.sizes if len(self.sizes) > 1 else is_KP.shape[1]
        return torch.stack([part.sum() for part in is_KP.sum(0).split(sizes)])

    def finest(self, peak: float) -> int:
        """Return the finest grid with room for elements up to ``peak``."""
        return next(bits for bits, limit in self.limits.items() if peak <= limit)

    def sums(self, bits_T: Sequence[int]) -> list[Tensor]:
        """Return the tensors' sums, each on its grid, int64."""
        parts = {bits: self._sum(bits).split(self.sizes) for bits in set(bits_T)}
        return [parts[bits][place] for place, bits in enumerate(bits_T)]

    def counts(self, bits_T: Sequence[int]) -> Tensor:
        """Return how many numbers unlike zero were sent and how many of them became zero on their grids, int64 (2,)."""
        lost = torch.stack([self._lost(bits)[place] for place, bits in enumerate(bits_T)])
        return torch.stack([self._num_sent, lost.sum()])

    def read(self, sums: Sequence[Tensor], bits_T: Sequence[int], factor: float) -> dict[str, Tensor]:
        """Return the tensors by name, ``factor`` times their sums on these grids."""
        result = {}
        for (name, shape), part, bits in zip(self._shapes.items(), sums, bits_T, strict=True):
            value, dtype = part.reshape(shape).double().mul_(2.0**-bits * factor), self._dtypes[name]
            if dtype.is_complex:
                value = torch.view_as_complex(value)
            # Whole numbers that were averaged are whole no more, but for rounding.
            result[name] = value if dtype.is_complex or dtype.is_floating_point else value.round().to(dtype)
        return result


def _reals(value: Tensor) -> Tensor:
    return torch.view_as_real(value) if value.is_complex() else value


def _largest(values: Tensor) -> Tensor:
    """The largest absolute value, float64; none where one of them is none."""
    if not values.numel():
        return values.new_zeros((), dtype=torch.float64)
    least, most = values.aminmax()
    return torch.maximum(-least, most).double()
