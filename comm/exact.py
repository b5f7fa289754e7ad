"""Exact sums: floats become int64 multiples of a grid, and integer addition has no order.

Any number of ranks, blocks and reduction trees gives the same bits, because nothing is rounded after the one
rounding of each client's own term. Each tensor takes the finest of a few grids on which its largest element over all
clients has room; a maximum has no order either.

Shapes: K clients in a block, T tensors with P numbers in all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from fedsim.comm.columns import Columns, side_by_side
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

# How many numbers stand behind the sums, see ``ExactSum.flat``.
NUM_COUNTS = 2
#: What the message about a client's number out of range asks, by which others know it.
DIVERGED = "did the training diverge?"

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
        self._columns: dict[str, list[Columns]] = {}
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
            self._columns[how] = [Columns(how, place, some, limits, self._counting) for place, some in parts]
        mask = None if self._masks is None else partial(self._masks, clients)
        for columns in self._columns[how]:
            columns.add(terms, weights, lambda name, values: self._refuse(how, name, values, limits, clients), mask)

    def _refuse(
        self, how: str, name: str, values: Tensor, limits: Mapping[int, float], clients: Sequence[int]
    ) -> UserError:
        limit = max(limits.values())
        bad = ~(values.double().abs() <= limit)
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
    def parts(self) -> list[Tensor]:
        """What the ranks add up: all sums, then how many numbers unlike zero were sent, and how many fell to zero.

        int64, P + NUM_COUNTS in all, in an order that depends on the names and shapes alone; not to be written to.
        """
        parts, counts = [], []
        for columns, bits in self._chosen():
            parts += columns.sums(bits)
            counts.append(columns.counts(bits))
        return [*parts, torch.stack(counts).sum(0) if counts else torch.zeros(NUM_COUNTS, dtype=torch.int64)]

    @property
    def flat(self) -> Tensor:
        """The ``parts`` side by side."""
        return torch.cat(self.parts)

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

    def _all(self) -> list["Columns"]:
        return [columns for _, some in sorted(self._columns.items()) for columns in some]

    def _chosen(self) -> Iterator[tuple["Columns", list[int]]]:
        """Each group of columns with the grids of its tensors."""
        peaks = (self.peaks if self._agreed is None else self._agreed).tolist()
        for columns in self._all():
            own, peaks = peaks[: len(columns.sizes)], peaks[len(columns.sizes) :]
            yield columns, [columns.finest(peak) for peak in own]
