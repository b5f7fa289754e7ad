"""The weighted sum over clients of B_k A_k, in its factors or multiplied out, and its singular values.

A sum of fewer ranks than the layer is wide stays in its factors, and is decomposed by the singular values of a small
core, as in FLoRIST (Ramesh and Dass, arXiv 2506.09199): no matrix of the layer's size is made. One of more ranks is
multiplied out, which is then cheaper. All is float64, and the same bits on every rank.

Shapes: K clients, G slices of a layer, R rank, D input width, O width of a slice, P = K R ranks side by side, Q
singular values.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Pair(NamedTuple):
    """LoRA's factors of a layer, A (G, R, D) and B (G, O, R), or (K, ...)."""

    a: Tensor
    b: Tensor

    @property
    def product(self) -> Tensor:
        """B A, (G, O, D) or (K, ...)."""
        return self.b @ self.a


def exact(pair: Pair) -> Pair:
    """Return a pair in float64."""
    return Pair(pair.a.double(), pair.b.double())


class Spectrum(NamedTuple):
    """A singular value decomposition: ``left`` (G, O, Q), ``values`` (G, Q) from the largest down, ``right`` (G, Q, D).

    Of every right vector the element of the largest size, of equal ones the first, is positive.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def first(self, rank: int) -> "Spectrum":
        """Return the largest ``rank`` values with their vectors, zeros where there are fewer."""
        missing = max(0, rank - self.values.shape[1])
        left, values = (F.pad(part[..., :rank], (0, missing)) for part in (self.left, self.values))
        return Spectrum(left, values, F.pad(self.right[:, :rank], (0, 0, 0, missing)))


class ProductSum(ABC):
    """A weighted sum of products B_k A_k of a layer, float64."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Return it multiplied out, (G, O, D)."""

    @abstractmethod
    def times(self, right_GDC: Tensor) -> Tensor:
        """Return its product with a matrix (G, D, C) for each slice, (G, O, C)."""

    @abstractmethod
    def minus(self, pair: Pair) -> "ProductSum":
        """Return what is left of it without the product of a pair."""

    @property
    @abstractmethod
    def energy(self) -> float:
        """The squared Frobenius norm over all slices."""

    @property
    @abstractmethod
    def spectrum(self) -> Spectrum:
        """The singular value decomposition of every slice."""


@dataclass(frozen=True)
class DenseSum(ProductSum):
    """The sum itself, ``matrix`` (G, O, D)."""

    matrix: Tensor

    def dense(self) -> Tensor:
        return self.matrix

    def times(self, right_GDC: Tensor) -> Tensor:
        return self.matrix @ right_GDC

    def minus(self, pair: Pair) -> ProductSum:
        return DenseSum(self.matrix - pair.product)

    @property
    def energy(self) -> float:
        return float(self.matrix.square().sum())

    @cached_property
    def spectrum(self) -> Spectrum:
        return _signed(*torch.linalg.svd(self.matrix, full_matrices=False))


@dataclass(frozen=True)
class FactoredSum(ProductSum):
    """``b`` (G, O, P) times ``a`` (G, P, D), P less than O and D."""

    b: Tensor
    a: Tensor

    def dense(self) -> Tensor:
        return self.b @ self.a

    def times(self, right_GDC: Tensor) -> Tensor:
        return self.b @ (self.a @ right_GDC)

    def minus(self, pair: Pair) -> ProductSum:
        return side_by_side(torch.cat([self.b, -pair.b], 2), torch.cat([self.a, pair.a], 1))

    @property
    def energy(self) -> float:
        # ||B A||^2 is the sum over all elements of B'B times those of A A'.
        return max(0.0, float(((self.b.mT @ self.b) * (self.a @ self.a.mT)).sum()))

    @cached_property
    def spectrum(self) -> Spectrum:
        q_left, r_left = torch.linalg.qr(self.b)
        q_right, r_right = torch.linalg.qr(self.a.mT)
        left, values, right = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
        return _signed(q_left @ left, values, right @ q_right.mT)


def side_by_side(b: Tensor, a: Tensor) -> ProductSum:
    """Return the sum that ``b`` (G, O, P) times ``a`` (G, P, D) is: in its factors if they are small, or in full."""
    return FactoredSum(b, a) if b.shape[2] < min(b.shape[1], a.shape[2]) else DenseSum(b @ a)


def weighted_sum(pair: Pair, weights_K: Tensor) -> ProductSum:
    """Return the sum of the products of the clients' pairs (K, ...) with weights (K,)."""
    weighted = weights_K.double().view(-1, 1, 1, 1) * pair.b.double()
    return side_by_side(weighted.permute(1, 2, 0, 3).flatten(2), pair.a.double().transpose(0, 1).flatten(1, 2))


def _signed(left: Tensor, values: Tensor, right: Tensor) -> Spectrum:
    """Choose the vectors' signs, which a decomposition leaves open."""
    signs = right.gather(2, right.abs().argmax(2, keepdim=True)).sign()
    return Spectrum(left * signs.mT, values, right * signs)
