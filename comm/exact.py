"""Exact sums: floats become int64 multiples of a grid, and integer addition has no order.

Any number of ranks, blocks and reduction trees gives the same bits, because nothing is rounded after the one
rounding of each client's own term. Each tensor takes the finest of a few grids on which its largest element over all
clients has room; a maximum has no order either.

Shapes: K clients in a block, T tensors with P numbers in all.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from fedsim.comm.group import Group
from fedsim.errors import UserError

# The grids, as multiples of 2^-bits, finest first. Until it is known which one a tensor takes it is summed on all
# that its elements fit, so they are few.
MEAN_GRIDS = (80, 60, 40)
SUM_GRIDS = (60, 40, 20, 0)
SHARES_GRIDS = (40,)
# Terms of a sum together stay below 2^62, so that neither a partial sum nor the total can wrap around.
ROOM_BITS = 62
# Whole numbers up to this are exact in float64, through which all terms go.
WHOLE_BITS = 53
# Small tensors are summed side by side up to so many numbers, since each operation has a price of its own.
COLUMNS_AT_ONCE = 2**16

# How many numbers stand behind the sums, see ``ExactSum.flat``.
NUM_COUNTS = 2
#: What the message about a client's number out of range asks, by which others know it.
DIVERGED = "did the training diverge?"

Refuse = Callable[[str, Tensor], UserError]
#: What is added to the clients' multiples under a stream's name, of so many numbers: int64 (K, P).
Masks = Callable[[Sequence[int], str, int], Tensor]


class ExactSum:
    """Running sums of named tensors over clients, held as int64.

    ``num_terms`` bounds the number of clients that all ranks together will add. Complex numbers travel as pairs.
    ``who``: what the terms belong to, if not to clients, for messages. Ranks that each hold a part ``agree`` on the
    largest of their ``peaks``, add up their ``flat`` and ``read`` that; a sum of one rank is read as it is.

    With ``masks`` what a client adds is masked first, on each grid anew, and sums wrap modulo 2^64. ``unmask`` comes
    before ``read``, which then has the bits that it has without. Peaks are plain: every client tells its own, and the
    largest is agreed upon. The counts behind ``below_grid`` are plain, too; no client tells them. Without ``counting``
    they stay zero.
    """

    def __init__(
        self, num_terms: int, who: str = "client", masks: Masks | None = None, *, counting: bool = True
    ) -> None:
        self.num_terms = num_terms
        self._counting = counting
        self._who = who
        self._masks = masks
        self._columns: dict[str, list[_Columns]] = {}
        self._agreed: Tensor | None = None

    def add_mean(self, terms: Mapping[str, Tensor], weights_K: Tensor, clients: Sequence[int]) -> None:
        """Add weighted terms (K, ...) to be read as a mean; the weights of all clients, float64 (K,), sum to one.

        UserError naming client and tensor where an element is not finite or beyond the coarsest grid's range.
        """
        limits = {bits: 2.0 ** (ROOM_BITS - 1 - bits) for bits in MEAN_GRIDS}
        self._add("mean", terms, weights_K, limits, clients)

    def add_sum(self, terms: Mapping[str, Tensor], clients: Sequence[int]) -> None:
        """Add terms (K, ...) as they are; whole numbers need no grid, and may be as large as float64 counts.

        UserError as for ``add_mean``; the range is that of the sum of ``num_terms`` terms.
        """
        whole = {name: v for name, v in terms.items() if not (v.is_floating_point() or v.is_complex())}
        broken = {name: v for name, v in terms.items() if name not in whole}
        ones = torch.ones(len(clients), dtype=torch.float64)
        limits = {bits: 2.0 ** (ROOM_BITS - bits) / self.num_terms for bits in SUM_GRIDS}
        self._add("sum", broken, ones, limits, clients)
        self._add("whole", whole, ones, {0: 2.0**WHOLE_BITS / self.num_terms}, clients)

    def add_shares(self, terms: Mapping[str, Tensor], clients: Sequence[int]) -> None:
        """Add terms (K, ...) that are a client's share of something about one, on one grid: a quarter of the work.

        UserError as for ``add_sum``, beyond 2^22 in all.
        """
        ones = torch.ones(len(clients), dtype=torch.float64)
        limits = {bits: 2.0 ** (ROOM_BITS - bits) / self.num_terms for bits in SHARES_GRIDS}
        self._add("shares", terms, ones, limits, clients)

    def _add(
        self, how: str, terms: Mapping[str, Tensor], weights: Tensor, limits: dict[int, float], clients: Sequence[int]
    ) -> None:
        if how not in self._columns:
            parts = enumerate(side_by_side(terms))
            self._columns[how] = [_Columns(how, place, some, limits, self._counting) for place, some in parts]
        mask = None if self._masks is None else partial(self._masks, clients)
        for columns in self._columns[how]:
            columns.add(terms, weights, lambda name, values: self._refuse(how, name, values, limits, clients), mask)

    def _refuse(
        self, how: str, name: str, values: Tensor, limits: Mapping[int, float], clients: Sequence[int]
    ) -> UserError:
        limit = max(limits.values())
        bad = ~(values.abs() <= limit)
        row = int(bad.nonzero()[0, 0])
        found = f"an element {values[row][bad[row]][0].item():g}"
        of = f"({DIVERGED})" if how == "mean" else f"of {self.num_terms} terms"
        expected = f"finite values of at most {limit:g}, the range of the exact sum {of}"
        return UserError(f"{self._who} {clients[row]}, tensor {name}", found, expected)

    @property
    def peaks(self) -> Tensor:
        """The largest absolute value of each tensor so far, float64 (T,)."""
        return torch.cat([torch.zeros(0, dtype=torch.float64), *(columns.peaks_T for columns in self._all())])

    def agree(self, peaks_T: Tensor) -> None:
        """Let each tensor's grid follow from the ``peaks`` of all ranks, element by element the largest."""
        self._agreed = peaks_T

    @property
    def flat(self) -> Tensor:
        """What the ranks add up: all sums, then how many numbers unlike zero were sent, and how many fell to zero.

        int64 (P + NUM_COUNTS,), in an order that depends on the names and shapes alone.
        """
        parts, counts = [], []
        for columns, bits in self._chosen():
            parts += columns.sums(bits)
            counts.append(columns.counts(bits))
        return torch.cat([*parts, torch.stack(counts).sum(0)]) if counts else torch.zeros(NUM_COUNTS, dtype=torch.int64)

    def unmask(self, flat: Tensor, take_away: Callable[[Tensor, str], None]) -> Tensor:
        """Return a reduced ``flat`` without masks; ``take_away`` subtracts in place, int64 (P,) on the CPU, by stream.

        Of each group of columns the grids that are read are unmasked, and of these the tensors that are on them kept.
        """
        masked, parts = flat.cpu(), []
        for columns, bits_T in self._chosen():
            own, masked = masked.split([sum(columns.sizes), len(masked) - sum(columns.sizes)])
            by_grid = {}
            for bits in set(bits_T):
                by_grid[bits] = own.clone()
                take_away(by_grid[bits], columns.stream(bits))
            grids = {bits: plain.split(columns.sizes) for bits, plain in by_grid.items()}
            parts += [grids[bits][place] for place, bits in enumerate(bits_T)]
        return torch.cat([*parts, masked]).to(flat.device)

    def read(self, flat: Tensor, growth: float = 1.0) -> dict[str, Tensor]:
        """Cut a reduced ``flat`` back into named float64 or complex128 tensors, integers into their own dtype.

        ``growth``: what means are multiplied with, where the weights of those who were added do not sum to one.
        """
        result: dict[str, Tensor] = {}
        for columns, bits in self._chosen():
            parts = flat.split([*columns.sizes, len(flat) - sum(columns.sizes)])
            result |= columns.read(parts[:-1], bits, growth if columns.how == "mean" else 1.0)
            flat = parts[-1]
        return result

    def meet(self, group: Group) -> dict[str, Tensor]:
        """Add up with the other ranks, all of which call this, and read the result."""
        self.agree(group.max_exact(self.peaks))
        return self.read(group.sum_exact(self.flat))

    def below_grid(self, flat: Tensor) -> float:
        """Return the share of the numbers unlike zero that became zero on their grid, 0..1, from a reduced ``flat``."""
        sent, lost = (int(count) for count in flat[-NUM_COUNTS:])
        return lost / max(1, sent)

    def _all(self) -> list["_Columns"]:
        return [columns for _, some in sorted(self._columns.items()) for columns in some]

    def _chosen(self) -> Iterator[tuple["_Columns", list[int]]]:
        """Each group of columns with the grids of its tensors."""
        peaks = (self.peaks if self._agreed is None else self._agreed).tolist()
        for columns in self._all():
            own, peaks = peaks[: len(columns.sizes)], peaks[len(columns.sizes) :]
            yield columns, [columns.finest(peak) for peak in own]


def side_by_side(terms: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Cut tensors (K, ...), in the order of their names, into groups of few numbers, or of a single tensor."""
    some: dict[str, Tensor] = {}
    for name in sorted(terms):
        # The order of adding may follow a checkpoint, which is read in another one on every rank.
        numbers = sum(math.prod(value.shape[1:]) for value in some.values()) + math.prod(terms[name].shape[1:])
        if some and numbers > COLUMNS_AT_ONCE:
            yield some
            some = {}
        some[name] = terms[name]
    if some:
        yield some


class _Columns:
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
        # A grid that no tensor fits any more is given up: peaks only grow.
        zeros = partial(torch.zeros, dtype=torch.int64, device=first.device)
        self._sums_P = {bits: zeros(sum(self.sizes)) for bits in limits}
        self._lost_T = {bits: zeros(len(terms)) for bits in limits}
        self._num_sent = zeros(())

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
        num_clients = len(weights_K)
        values_KP = torch.cat([_reals(terms[name]).reshape(num_clients, -1).double() for name in self._shapes], dim=1)
        peaks_T = torch.stack([_largest(part) for part in values_KP.abs().amax(0).split(self.sizes)]).cpu()
        if not (peaks_T <= max(self.limits.values())).all():
            parts = zip(self._shapes, values_KP.split(self.sizes, dim=1), peaks_T.tolist(), strict=True)
            raise next(refuse(name, part) for name, part, peak in parts if not peak <= max(self.limits.values()))
        self.peaks_T = torch.maximum(self.peaks_T, peaks_T)
        values_KP *= weights_K.to(values_KP.device)[:, None]
        loses = self._counting
        num_sent = values_KP.count_nonzero() if loses else 0
        self._num_sent += num_sent
        scaled_KP = torch.empty_like(values_KP)
        # Coarsest first: where nothing is lost there, nothing is on finer grids, and nobody has to count.
        for bits, limit in reversed(list(self.limits.items())):
            if bits in self._sums_P and not (self.peaks_T <= limit).any():
                del self._sums_P[bits], self._lost_T[bits]
            elif bits in self._sums_P:
                # What does not fit this grid becomes some number here that nobody reads.
                multiples_KP = torch.mul(values_KP, 2.0**bits, out=scaled_KP).round_().to(torch.int64)
                loses = loses and bool(multiples_KP.count_nonzero() != num_sent)
                if loses:
                    self._lost_T[bits] += self._by_tensor((multiples_KP == 0) & (values_KP != 0))
                if mask is not None:
                    multiples_KP += mask(self.stream(bits), sum(self.sizes)).to(multiples_KP.device)
                self._sums_P[bits] += multiples_KP.sum(0)

    def _by_tensor(self, is_KP: Tensor) -> Tensor:
        return torch.stack([part.sum() for part in is_KP.sum(0).split(self.sizes)])

    def finest(self, peak: float) -> int:
        """Return the finest grid with room for elements up to ``peak``."""
        return next(bits for bits, limit in self.limits.items() if peak <= limit)

    def sums(self, bits_T: Sequence[int]) -> list[Tensor]:
        """Return the tensors' sums, each on its grid, int64."""
        parts = {bits: sums.split(self.sizes) for bits, sums in self._sums_P.items()}
        return [parts[bits][place] for place, bits in enumerate(bits_T)]

    def counts(self, bits_T: Sequence[int]) -> Tensor:
        """Return how many numbers unlike zero were sent and how many of them became zero on their grids, int64 (2,)."""
        lost = torch.stack([self._lost_T[bits][place] for place, bits in enumerate(bits_T)])
        return torch.stack([self._num_sent, lost.sum()])

    def read(self, sums: Sequence[Tensor], bits_T: Sequence[int], factor: float) -> dict[str, Tensor]:
        """Return the tensors by name, ``factor`` times their sums on these grids."""
        result = {}
        for (name, shape), part, bits in zip(self._shapes.items(), sums, bits_T, strict=True):
            value, dtype = part.reshape(shape).double() * 2.0**-bits * factor, self._dtypes[name]
            if dtype.is_complex:
                value = torch.view_as_complex(value)
            # Whole numbers that were averaged are whole no more, but for rounding.
            result[name] = value if dtype.is_complex or dtype.is_floating_point else value.round().to(dtype)
        return result


def _reals(value: Tensor) -> Tensor:
    return torch.view_as_real(value) if value.is_complex() else value


def _largest(values: Tensor) -> Tensor:
    return values.amax() if values.numel() else values.new_zeros(())
