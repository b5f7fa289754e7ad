"""What a backward pass leaves of single examples, so that each may get its own share in a sum of gradients.

A layer's gradients are products of what came in and what comes back ("book-keeping": Bu et al., Differentially private
optimization on large model at small cost, ICML 2023; norms without gradients: Goodfellow, 2015, for tokens Li et al.,
ICLR 2022). Of low-rank factors an example's product is small, R x D: made for its norm and dropped, and made again with
the example's factor for the sum. No gradient of a whole model stands beside another one.

Clients have unequal numbers of images, and no place is filled up for the others' sake: the images of all clients stand
in a row, those of a client together.

Shapes: K clients in a block, N images of all, B images of the client that has most, T rows of an image, M = N T rows in
all, D input width, O width of one slice, S slices of the output, G of them adapted, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from fedsim.kernels.build import call


class Sizes:
    """How many of the N images are each client's, and where a client's are among K rows of B places.

    N is ``usual`` plus or minus some eighths of it, rounded up: for every new number of rows oneDNN prepares its
    products anew and keeps that. The last images may therefore be nobody's.
    """

    def __init__(self, counts: Sequence[int], usual: int = 0) -> None:
        self.counts = list(counts)
        self.num_own = sum(counts)
        unit = max(1, usual // 8)
        self.total = usual - (usual - self.num_own) // unit * unit
        self.width = max(counts)
        sizes = torch.tensor(counts)
        self.starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        #: bool (K, B), true for the first places of each row.
        self.filled = torch.arange(self.width) < sizes[:, None]

    @cached_property
    def places(self) -> Tensor:
        """The place of every image among the K * B, int64 (N,); the first for those that are nobody's."""
        own = self.filled.flatten().nonzero()[:, 0]
        return torch.cat([own, own.new_zeros(self.total - self.num_own)])

    @property
    def is_even(self) -> bool:
        """Whether all places are filled, and no image is nobody's."""
        return self.total == self.num_own == self.filled.numel()

    def spread(self, rows: Tensor) -> Tensor:
        """Return (K, B, ...) of (N, ...), zero at places that are not filled; with a gradient."""
        if not self.is_even:
            padded = rows.new_zeros(self.filled.numel(), *rows.shape[1:])
            places = self.places[: self.num_own].to(rows.device)
            rows = padded.index_copy(0, places, rows[: self.num_own])
        return rows.reshape(*self.filled.shape, *rows.shape[1:])

    def gather(self, padded: Tensor) -> Tensor:
        """Return (N, ...) of (K, B, ...); with a gradient."""
        flat = padded.flatten(0, 1)
        return flat if self.is_even else flat[self.places.to(padded.device)]


class Products(Protocol):
    """The gradients of A and B of every image, not multiplied out."""

    def squares(self) -> Tensor:
        """Return each image's squared norm, float64 (N,), or of those alone that are somebody's."""

    def sums(self, factors_N: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the sums of a client's gradients times their factors, (K, G, R, D) and (K, G, O, R), float32.

        None for a factor that does not train.
        """


@dataclass
class Tape:
    """Written by a backward pass: squared norms, and every layer's products.

    ``squares`` float64 (N,), over all layers so far. ``parts``: layer, those of its adapted slices, products.
    """

    sizes: Sizes
    squares: Tensor | None = None
    parts: list[tuple[Any, slice, Products]] = field(default_factory=list)


@dataclass(frozen=True)
class Keep:
    """Where a layer's backward pass leaves the products of some of its adapted slices."""

    tape: Tape
    layer: Any
    places: slice

    @property
    def sizes(self) -> Sizes:
        """How many images each client has."""
        return self.tape.sizes

    def starts(self, num_rows: int) -> Tensor:
        """The clients' first rows among ``num_rows``, int64 (K + 1,)."""
        return self.sizes.starts * (num_rows // self.sizes.total)

    def __call__(self, products: Products) -> None:
        squares = products.squares()
        self.tape.squares = squares if self.tape.squares is None else self.tape.squares + squares
        self.tape.parts.append((self.layer, self.places, products))


@dataclass(frozen=True)
class PlainProducts:
    """With PyTorch's operators, over K rows of B places that need not be filled.

    ``x`` (K, B T, D), ``inner`` and ``hidden`` (K, B T, G R), ``grad`` (K, B T, S * O). Multiplied in float32 whatever
    their type: a norm of rounded numbers bounds nothing.
    """

    x: Tensor
    inner: Tensor
    hidden: Tensor
    grad: Tensor
    targets: tuple[int, ...]
    sizes: Sizes
    slice_width: int
    needs_a: bool
    needs_b: bool

    def squares(self) -> Tensor:
        pairs = []
        if self.needs_a:
            pairs.append((self.inner, self.x))
        if self.needs_b:
            pairs += self._pairs_of_b(self.hidden)
        num_places = self.sizes.filled.numel()
        found = torch.zeros(num_places, dtype=torch.float64, device=self.x.device)
        for left, right in pairs:
            one, other = (side.float().reshape(num_places, -1, side.shape[-1]) for side in (left, right))
            found += torch.bmm(one.mT, other).square_().sum((1, 2)).double()
        return self.sizes.gather(found.view(self.sizes.filled.shape))

    def sums(self, factors_N: Tensor) -> tuple[Tensor | None, Tensor | None]:
        num_rows = self.x.shape[1] // self.sizes.width
        factors_KM1 = self.sizes.spread(factors_N).repeat_interleave(num_rows, 1)[..., None]
        grad_a = grad_b = None
        if self.needs_a:
            product = torch.bmm((self.inner.float() * factors_KM1).mT, self.x.float())
            grad_a = product.unflatten(1, (len(self.targets), -1))
        if self.needs_b:
            pairs = self._pairs_of_b(self.hidden.float() * factors_KM1)
            grad_b = torch.stack([torch.bmm(grad.float().mT, hidden) for hidden, grad in pairs], 1)
        return grad_a, grad_b

    def _pairs_of_b(self, hidden: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (K, B T, R) and (K, B T, O) of every adapted slice."""
        grads = self.grad.unflatten(2, (-1, self.slice_width))
        parts = hidden.unflatten(2, (len(self.targets), -1))
        return [(parts[:, :, place], grads[:, :, target]) for place, target in enumerate(self.targets)]


@dataclass(frozen=True)
class CompiledProducts:
    """The same for ``lora_examples.cpp``, as ``CompiledLowRank`` has it.

    ``x`` (M, D), ``inner`` and ``hidden`` (1, M, G, R) with room behind, ``grad`` (M, S * O); ``places`` int64 (G,):
    the adapted slices.
    """

    x: Tensor
    inner: Tensor
    hidden: Tensor
    grad: Tensor
    places: Tensor
    sizes: Sizes
    slice_width: int
    rank: int
    needs_a: bool
    needs_b: bool

    def squares(self) -> Tensor:
        found = torch.empty(self.sizes.num_own, dtype=torch.float64)
        needs = int(self.needs_a), int(self.needs_b)
        call("lora_squares", *self._sides(), found, len(found), *self._widths(), *needs)
        return found

    def sums(self, factors_N: Tensor) -> tuple[Tensor | None, Tensor | None]:
        num_clients, adapted, width = len(self.sizes.counts), len(self.places), self.x.shape[1]
        grad_a = torch.empty(num_clients, adapted, self.rank, width) if self.needs_a else None
        grad_b = torch.empty(num_clients, adapted, self.slice_width, self.rank) if self.needs_b else None
        factors = factors_N.float().contiguous()
        clients = self.sizes.starts, num_clients
        call("lora_sums", *self._sides(), factors, grad_a, grad_b, *clients, *self._widths())
        return grad_a, grad_b

    def _sides(self) -> tuple[Any, ...]:
        return self.x.dtype, self.grad, self.x, self.hidden, self.inner, self.places

    def _widths(self) -> tuple[int, ...]:
        """T, D, O, S, G and R."""
        num_tokens, slices = len(self.x) // self.sizes.total, self.grad.shape[1] // self.slice_width
        return num_tokens, self.x.shape[1], self.slice_width, slices, len(self.places), self.rank
