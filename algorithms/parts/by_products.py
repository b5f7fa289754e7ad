"""What the methods share whose server works on the weighted sum over clients of B_k A_k.

What travels follows from the config. Where the server may read single clients, their factors are gathered, and every
rank has the sum as [w_1 B_1 ... w_K B_K] times [A_1; ...; A_K], in the cohort's order. Where it may read sums alone
(secure aggregation, noise on whole updates), clients send the change of their product and the exact sum adds it up.
Factors are what is cheaper otherwise, in bytes, memory and seconds (``benchmarks/lora/low_rank.py``).

Shapes: K clients, G slices of a layer, R rank, D input width, O width of a slice.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
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
    beside,
)
from fedsim.algorithms.parts.low_rank import DenseSum, Pair, ProductSum, exact, weighted_sum
from fedsim.algorithms.parts.own_ranks import scales_of
from fedsim.errors import UserError
from fedsim.models.specs import SHIFT, A, B

FACTORS, WEIGHTS, PRODUCTS = "factors", "weights", "products"


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


class Energies(NamedTuple):
    """Squared norms: of a sum, of what the factors lack of it, and of what the frozen weights do not have either."""

    total: float
    residual: float
    lost: float


def energies_of(total: ProductSum, new: Renewed) -> Energies:
    """Return the energies of a layer whose sum is ``total``."""
    residual = total.minus(Pair(new.a, new.b))
    lost = residual.energy if new.shift is None else DenseSum(residual.dense() - new.shift).energy
    return Energies(total.energy, residual.energy, lost)


def figures_of(energies: Mapping[str, Energies]) -> dict[str, Any]:
    """Return numbers for the log, in all and per layer.

    Of the sum's energy the share that the returned factors keep; the norm of what they lack, the residual; and as
    ``aggregation_deviation`` the norm of what the server has lost, relative to the sum's: of the residual what it has
    not put into the frozen weights.
    """
    whole = Energies(*map(sum, zip(*energies.values(), strict=True)))
    return {
        "aggregation_deviation": _relative(whole.lost, whole.total) ** 0.5,
        "aggregation_deviation_per_layer": {n: _relative(own.lost, own.total) ** 0.5 for n, own in energies.items()},
        "energy_kept": 1 - _relative(whole.residual, whole.total),
        "energy_kept_per_layer": {n: 1 - _relative(own.residual, own.total) for n, own in energies.items()},
        "residual_norm": whole.residual**0.5,
        "residual_norm_per_layer": {n: own.residual**0.5 for n, own in energies.items()},
    }


def weights_of(aggregate: Aggregate, device: torch.device) -> Tensor:
    """Return the weights (K,) of those whose factors were gathered: among them alone, where some were left out."""
    weights = aggregate.gather[WEIGHTS][WEIGHTS].to(device)
    return weights / weights.sum()


def _relative(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


class ByProducts(Algorithm):
    """A method whose server works on the sum of the clients' products; what is no factor is averaged.

    ``diagnostics``: see ``figures_of``.
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
        # A client whose rank is lower scales its product up; the sum is in units of the server's.
        scale_K = scales_of(self.facts, update.clients)
        pairs = ((layer, self._pair(update.after, layer)) for layer in self.layers)
        own = {layer: Pair(a, b if self.facts.scales is None else b * beside(scale_K, b)) for layer, (a, b) in pairs}
        names = {layer + letter for layer in self.layers for letter in (A, B)}
        others = {name: value for name, value in sent.items() if name not in names}
        if not self.facts.sums_alone:
            gathered = {layer + letter: v for layer, p in own.items() for letter, v in zip((A, B), p, strict=True)}
            return Payload(mean={PARAMS: others}, gather={FACTORS: gathered, WEIGHTS: {WEIGHTS: update.weights}})
        change = {layer: exact(p).product - self._before(update.before, layer).product for layer, p in own.items()}
        return Payload(mean={PARAMS: sent if self.averages_factors else others, PRODUCTS: change})

    def post_aggregate(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        params = dict(super().post_aggregate(state, aggregate).params)
        energies: dict[str, Energies] = {}
        for layer in self._sums(state, aggregate):
            new = self.renewed(layer)
            for letter, value in zip((A, B), (new.a, new.b), strict=True):
                params[layer.path + letter] = value.to(params[layer.path + letter].dtype)
            if new.shift is not None:
                params[layer.path + SHIFT] = add_exact(params[layer.path + SHIFT], new.shift)
            energies[layer.path] = energies_of(layer.total, new)
        self._figures = figures_of(energies)
        return replace(state, params=params)

    def diagnostics(self, state: ServerState, aggregate: Aggregate) -> dict[str, Any]:
        return self._figures

    def _sums(self, state: ServerState, aggregate: Aggregate) -> Iterator[LayerSum]:
        for path in self.layers:
            before = self._before(state.params, path)
            if PRODUCTS in aggregate.mean:
                total: ProductSum = DenseSum(before.product + aggregate.mean[PRODUCTS][path].to(before.b.device))
            else:
                weights = weights_of(aggregate, before.b.device)
                total = weighted_sum(self._pair(aggregate.gather[FACTORS], path), weights)
            mean = self._mean(path, before, aggregate) if self.averages_factors else None
            yield LayerSum(path, state.round + 1, before, total, mean)

    def _mean(self, path: str, before: Pair, aggregate: Aggregate) -> Pair:
        if PRODUCTS in aggregate.mean:
            change = self._pair(aggregate.mean[PARAMS], path)
        else:
            own = exact(self._pair(aggregate.gather[FACTORS], path))
            weights = weights_of(aggregate, own.b.device)
            change = Pair(*(torch.tensordot(weights, k - v, 1) for k, v in zip(own, before, strict=True)))
        return Pair(before.a + change.a.to(before.a.device), before.b + change.b.to(before.b.device))

    def _before(self, params: Tensors, path: str) -> Pair:
        return exact(self._pair(params, path))

    @staticmethod
    def _pair(params: Tensors, path: str) -> Pair:
        return Pair(params[path + A], params[path + B])
