"""The weighted sum over clients of B_k A_k, layer by layer, and what the methods share whose server works on it.

What travels follows from the config. Where the server may read single clients, their factors are gathered, and every
rank has the sum as [w_1 B_1 ... w_K B_K] times [A_1; ...; A_K], in the cohort's order. Where it may read sums alone
(secure aggregation, noise on whole updates), clients send the change of their product and the exact sum adds it up.
Factors are what is cheaper otherwise, in bytes, memory and seconds (``benchmarks/low_rank.py``).

A sum of fewer ranks than the layer is wide stays in its factors, and is decomposed by the singular values of a small
core, as in FLoRIST (Ramesh and Dass, arXiv 2506.09199): no matrix of the layer's size is made. One of more ranks is
multiplied out, which is then cheaper. All is float64, and the same bits on every rank.

Shapes: K clients, G slices of a layer, R rank, D input width, O width of a slice, P = K R ranks side by side, Q
singular values.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.algorithms.base import (
    PARAMS,
    Aggregate,
    Algorithm,
    Facts,
    Payload,
    ServerState,
    Tensors,
    Update,
    add_exact,
)
from fedsim.errors import UserError
from fedsim.models.specs import SHIFT, A, B

FACTORS, WEIGHTS, PRODUCTS = "factors", "weights", "products"


class Pair(NamedTuple):
    """LoRA's factors of a layer, A (G, R, D) and B (G, O, R), or (K, ...)."""

    a: Tensor
    b: Tensor

    @property
    def product(self) -> Tensor:
        """B A, (G, O, D) or (K, ...)."""
        return self.b @ self.a


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


@dataclass(frozen=True)
class LayerSum:
    """What the clients made of a layer in a round (counted from 1); float64.

    ``before``: the server's factors that they began with. ``total``: the weighted sum of their products. ``mean``: the
    weighted means of their factors, where the method ``averages_factors``.
    """

    path: str
    round: int
    before: Pair
    total: ProductSum
    mean: Pair | None


class Renewed(NamedTuple):
    """What the server goes on with in a layer: factors, and ``shift`` (G, O, D) to be added to the frozen weights."""

    a: Tensor
    b: Tensor
    shift: Tensor | None = None


class ByProducts(Algorithm):
    """A method whose server works on the sum of the clients' products; what is no factor is averaged.

    ``diagnostics``: of the sum's energy (squared norm) the share that the returned factors keep, in all and per layer,
    and the norm of what they do not: where the method shifts the frozen weights that has gone there.
    """

    #: Whether it needs the means of the factors, too.
    averages_factors: ClassVar[bool] = False

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        self.layers = sorted(n.removesuffix(A) for n, spec in self.specs.items() if spec.kind == "lora_a")
        if not self.layers:
            found = f"null with {type(self).__name__}, which adds up products of LoRA's factors"
            raise UserError("model.lora", found, "a section, {} for its defaults")
        self._figures: dict[str, Any] = {}

    @abstractmethod
    def renewed(self, layer: LayerSum) -> Renewed:
        """Return what the server goes on with in a layer, float64; the same on every rank."""

    def pre_aggregate(self, update: Update) -> Payload:
        sent = self.sent(update.delta)
        own = {layer: self._pair(update.after, layer) for layer in self.layers}
        names = {layer + letter for layer in self.layers for letter in (A, B)}
        others = {name: value for name, value in sent.items() if name not in names}
        if not self.facts.sums_alone:
            gathered = {layer + letter: v for layer, p in own.items() for letter, v in zip((A, B), p, strict=True)}
            return Payload(mean={PARAMS: others}, gather={FACTORS: gathered, WEIGHTS: {WEIGHTS: update.weights}})
        change = {layer: _exact(p).product - self._before(update.before, layer).product for layer, p in own.items()}
        return Payload(mean={PARAMS: sent if self.averages_factors else others, PRODUCTS: change})

    def post_aggregate(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        params = dict(super().post_aggregate(state, aggregate).params)
        energies, losses = {}, {}
        for layer in self._sums(state, aggregate):
            new = self.renewed(layer)
            for letter, value in zip((A, B), (new.a, new.b), strict=True):
                params[layer.path + letter] = value.to(params[layer.path + letter].dtype)
            if new.shift is not None:
                params[layer.path + SHIFT] = add_exact(params[layer.path + SHIFT], new.shift)
            energies[layer.path] = layer.total.energy
            losses[layer.path] = layer.total.minus(Pair(new.a, new.b)).energy
        self._figures = {
            "energy_kept": _kept(sum(losses.values()), sum(energies.values())),
            "energy_kept_per_layer": {path: _kept(losses[path], energy) for path, energy in energies.items()},
            "residual_norm": sum(losses.values()) ** 0.5,
        }
        return replace(state, params=params)

    def diagnostics(self, state: ServerState, aggregate: Aggregate) -> dict[str, Any]:
        return self._figures

    def _sums(self, state: ServerState, aggregate: Aggregate) -> Iterator[LayerSum]:
        for path in self.layers:
            before = self._before(state.params, path)
            if PRODUCTS in aggregate.mean:
                total: ProductSum = DenseSum(before.product + aggregate.mean[PRODUCTS][path].to(before.b.device))
            else:
                weights = aggregate.gather[WEIGHTS][WEIGHTS].to(before.b.device)
                total = weighted_sum(self._pair(aggregate.gather[FACTORS], path), weights)
            mean = self._mean(path, before, aggregate) if self.averages_factors else None
            yield LayerSum(path, state.round + 1, before, total, mean)

    def _mean(self, path: str, before: Pair, aggregate: Aggregate) -> Pair:
        if PRODUCTS in aggregate.mean:
            change = self._pair(aggregate.mean[PARAMS], path)
        else:
            own = _exact(self._pair(aggregate.gather[FACTORS], path))
            weights = aggregate.gather[WEIGHTS][WEIGHTS].to(own.b.device)
            change = Pair(*(torch.tensordot(weights, k - v, 1) for k, v in zip(own, before, strict=True)))
        return Pair(before.a + change.a.to(before.a.device), before.b + change.b.to(before.b.device))

    def _before(self, params: Tensors, path: str) -> Pair:
        return _exact(self._pair(params, path))

    @staticmethod
    def _pair(params: Tensors, path: str) -> Pair:
        return Pair(params[path + A], params[path + B])


def _exact(pair: Pair) -> Pair:
    return Pair(pair.a.double(), pair.b.double())


def _kept(lost: float, energy: float) -> float:
    return 1 - lost / energy if energy > 0 else 1.0
