"""What a backward pass leaves of single examples, so that each may get its own share in a sum of gradients.

A layer's gradients are products of what came in and what comes back ("book-keeping": Bu et al., Differentially private
optimization on large model at small cost, ICML 2023; norms without gradients: Goodfellow, 2015, for tokens Li et al.,
ICLR 2022). Of low-rank factors an example's product is small, R x D: made for its norm and dropped, and made again with
the example's factor for the sum. No gradient of a whole model stands beside another one.

Shapes: K clients in a block, B examples of each, T rows of an example, M = B T rows of a client, D input width, O width
of one slice, S slices of the output, G of them adapted, R rank.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fedsim.kernels.build import call


class Products(Protocol):
    """The gradients of A and B of every example, not multiplied out."""

    def squares(self, num_images: int) -> Tensor:
        """Return each example's squared norm, float64 (K, B)."""

    def sums(self, factors_KB: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the sums of the examples' gradients times their factors, (K, G, R, D) and (K, G, O, R), float32.

        None for a factor that does not train.
        """


Keep = Callable[[Products], None]


@dataclass
class Tape:
    """Written by a backward pass over batches of B = ``num_images``: squared norms, and every layer's products.

    ``squares`` float64 (K, B), over all layers so far. ``parts``: layer, those of its adapted slices, products.
    """

    num_images: int
    squares: Tensor | None = None
    parts: list[tuple[Any, slice, Products]] = field(default_factory=list)

    def keep(self, layer: Any, places: slice) -> Keep:
        """Return what a layer's backward pass calls with the products of some of its adapted slices."""

        def keep(products: Products) -> None:
            squares = products.squares(self.num_images)
            self.squares = squares if self.squares is None else self.squares + squares
            self.parts.append((layer, places, products))

        return keep


@dataclass(frozen=True)
class PlainProducts:
    """With PyTorch's operators: ``x`` (K, M, D), ``inner`` and ``hidden`` (K, M, G R), ``grad`` (K, M, S * O).

    Multiplied in float32 whatever their type: a norm of rounded numbers bounds nothing.
    """

    x: Tensor
    inner: Tensor
    hidden: Tensor
    grad: Tensor
    targets: tuple[int, ...]
    slice_width: int
    needs_a: bool
    needs_b: bool

    def squares(self, num_images: int) -> Tensor:
        pairs = []
        if self.needs_a:
            pairs.append((self.inner, self.x))
        if self.needs_b:
            pairs += self._pairs_of_b(self.hidden)
        found = torch.zeros(len(self.x) * num_images, dtype=torch.float64, device=self.x.device)
        for left, right in pairs:
            one, other = (side.float().reshape(len(found), -1, side.shape[-1]) for side in (left, right))
            found += torch.bmm(one.mT, other).square_().sum((1, 2)).double()
        return found.view(len(self.x), num_images)

    def sums(self, factors_KB: Tensor) -> tuple[Tensor | None, Tensor | None]:
        num_rows = self.x.shape[1] // factors_KB.shape[1]
        factors_KM1 = factors_KB.repeat_interleave(num_rows, 1)[..., None]
        grad_a = grad_b = None
        if self.needs_a:
            product = torch.bmm((self.inner.float() * factors_KM1).mT, self.x.float())
            grad_a = product.unflatten(1, (len(self.targets), -1))
        if self.needs_b:
            pairs = self._pairs_of_b(self.hidden.float() * factors_KM1)
            grad_b = torch.stack([torch.bmm(grad.float().mT, hidden) for hidden, grad in pairs], 1)
        return grad_a, grad_b

    def _pairs_of_b(self, hidden: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (K, M, R) and (K, M, O) of every adapted slice."""
        grads = self.grad.unflatten(2, (-1, self.slice_width))
        parts = hidden.unflatten(2, (len(self.targets), -1))
        return [(parts[:, :, place], grads[:, :, target]) for place, target in enumerate(self.targets)]


@dataclass(frozen=True)
class CompiledProducts:
    """The same for ``lora_examples.cpp``, as ``CompiledLowRank`` has it.

    ``x`` (K, M, D), ``inner`` and ``hidden`` (K, M, G, R) with room behind, ``grad`` (K M, S * O); ``places`` int64
    (G,): the adapted slices.
    """

    x: Tensor
    inner: Tensor
    hidden: Tensor
    grad: Tensor
    places: Tensor
    slice_width: int
    rank: int
    needs_a: bool
    needs_b: bool

    def squares(self, num_images: int) -> Tensor:
        found = torch.zeros(len(self.x), num_images, dtype=torch.float64)
        call("lora_squares", *self._layer(), found, *self._sizes(num_images), int(self.needs_a), int(self.needs_b))
        return found

    def sums(self, factors_KB: Tensor) -> tuple[Tensor | None, Tensor | None]:
        num_clients, _, width = self.x.shape
        adapted, rank = len(self.places), self.rank
        grad_a = torch.empty(num_clients, adapted, rank, width) if self.needs_a else None
        grad_b = torch.empty(num_clients, adapted, self.slice_width, rank) if self.needs_b else None
        factors = factors_KB.float().contiguous()
        call("lora_sums", *self._layer(), factors, grad_a, grad_b, *self._sizes(factors.shape[1]))
        return grad_a, grad_b

    def _layer(self) -> tuple[Any, ...]:
        return self.x.dtype, self.grad, self.x, self.hidden, self.inner, self.places

    def _sizes(self, num_images: int) -> tuple[int, ...]:
        """K, B, T, D, O, S, G and R."""
        num_clients, num_rows, width = self.x.shape
        slices = self.grad.shape[1] // self.slice_width
        num_tokens = num_rows // num_images
        return num_clients, num_images, num_tokens, width, self.slice_width, slices, len(self.places), self.rank
