"""How well what the server returns stands for the clients' LoRA updates, and how far the clients drift apart.

The clients' mean update of a layer is M, the sum over clients of w_k B_k A_k; the server goes on with B A. Every method
has the same columns, per layer and in all. No client's factors are collected for them, see ``factor_sums``.

Shapes: G slices of a layer, R rank, D input width, O output width of a slice.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedsim.algorithms.base import Tensors
from fedsim.measure.factor_sums import PRODUCT, SIZES, SPAN, FactorSums, first_ranks, narrowed
from fedsim.models.specs import A, B

#: The columns whose values are those of the factors' product, and of the spaces that clients' factors span.
OF_PRODUCT = ("aggregation_deviation", "energy_kept", "residual_norm")
OF_SPANS = {A: "subspace_angle_a", B: "subspace_angle_b"}
EFFECTIVE_RANK = "effective_rank"
PER_LAYER = "_per_layer"
# What rounding A and B to float32, perhaps twice, leaves of a difference of equal products, relative to ||A|| ||B||.
ROUNDING = 2.0**-22


@dataclass
class _Layer:
    """What is known of a layer, or of all together: ||M - B A||^2, ||M||^2, and of factors' spaces their overlap.

    ``overlaps``: by A and B the sums over pairs of different clients of w_k w_l <P_k, P_l> and of w_k w_l ||P_k||
    ||P_l||. What is None has no meaning in a layer.
    """

    energies: tuple[float, float] | None = None
    rank: float | None = None
    overlaps: dict[str, tuple[float, float]] = field(default_factory=dict)

    def figures(self) -> dict[str, float | None]:
        found: dict[str, float | None] = {EFFECTIVE_RANK: self.rank, **dict.fromkeys(OF_PRODUCT)}
        if self.energies is not None:
            residual, whole = self.energies
            share = residual / whole if whole > 0 else 0.0
            values = (math.sqrt(share), 1 - share, math.sqrt(residual))
            found |= dict(zip(OF_PRODUCT, values, strict=True))
        return found | {column: _angle(self.overlaps.get(letter)) for letter, column in OF_SPANS.items()}


def lora_diagnostics(observed: FactorSums, before: Tensors, after: Tensors, change: Tensors) -> dict[str, Any]:
    """Return all columns, each under its name in all and under NAME_per_layer by layer; None where one has no meaning.

    ``before`` and ``after``: the server's parameters around the phase; ``change``: the clients' mean change of those
    that are averaged.

    aggregation_deviation: ||M - B A|| / ||M||, Frobenius norms (DEeR, section III); energy_kept: 1 - ||M - B A||^2 /
    ||M||^2; residual_norm: ||M - B A||. Exact for layers no wider than ``EXACT_WIDTH`` and estimated for others.
    effective_rank: exp of the entropy of the normalised singular values of B A (Roy and Vetterli, 2007), averaged over
    the slices. None of these for layers of which clients keep a factor that trains.

    subspace_angle_a, _b: the angle in degrees whose squared cosine is the mean one of the principal angles between the
    row spaces of two clients' A, the column spaces of their B; zero where the phase did not train the factor. None
    where there are no two such spaces, and where they were not added up.
    """
    layers = {}
    for path, trained in observed.layers.items():
        layers[path] = layer = _Layer()
        for name in trained.names:
            layer.overlaps[name.removeprefix(path)] = _overlap(observed.sums, name)
        if trained.are_sent:
            a, b, rounding = _returned(path, trained.names, before, after, change)
            layer.rank = _effective_rank(a, b)
            if (product := observed.sums.get(PRODUCT + path)) is not None:
                layer.energies = _energies(product, a, b, rounding)
    own = {path: layer.figures() for path, layer in layers.items()}
    columns = _all_of(list(layers.values())).figures()
    of_layers = {f"{key}{PER_LAYER}": {path: figures[key] for path, figures in own.items()} for key in columns}
    return columns | of_layers


def _all_of(layers: list[_Layer]) -> _Layer:
    """Return the layers together: sums of energies and overlaps, the mean of ranks, of those that have any."""
    energies = [layer.energies for layer in layers if layer.energies is not None]
    ranks = [layer.rank for layer in layers if layer.rank is not None]
    whole = _Layer(_sums(energies) if energies else None, sum(ranks) / len(ranks) if ranks else None)
    for letter in OF_SPANS:
        overlaps = [layer.overlaps[letter] for layer in layers if letter in layer.overlaps]
        if overlaps:
            whole.overlaps[letter] = _sums(overlaps)
    return whole


def _sums(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(first for first, _ in pairs), sum(second for _, second in pairs)


def _returned(
    path: str, trained: Sequence[str], before: Tensors, after: Tensors, change: Tensors
) -> tuple[Tensor, Tensor, float]:
    """Return the A and B, float64, that the server goes on with, and how far they may be rounded, see ``ROUNDING``.

    Where it goes on with the clients' means, these as they were before they were rounded.
    """
    names = (path + A, path + B)
    end = first_ranks({name: after[name] for name in names}, change)
    if all(name in change for name in trained):
        start = first_ranks({name: before[name] for name in names}, change)
        means = {
            name: v.double() + change[name].to(v.device) if name in change else v.double() for name, v in start.items()
        }
        if all(torch.equal(value.to(end[name].dtype), end[name]) for name, value in means.items()):
            a, b = means.values()
            return a, b, 0.0
    a, b = (value.double() for value in end.values())
    return a, b, ROUNDING


def _energies(product: Tensor, a: Tensor, b: Tensor, rounding: float) -> tuple[float, float]:
    """Return ||M - B A||^2 and ||M||^2, both over the directions of ``narrowed``."""
    residual, whole = (value.square().sum().item() for value in (product - b @ narrowed(a), product))
    # What float64, or float32 before it, leaves of a difference of equal numbers is none.
    limit = max(1e-24 * whole, (rounding * a.norm().item() * b.norm().item()) ** 2)
    return residual if residual > limit else 0.0, whole


def _overlap(sums: Tensors, name: str) -> tuple[float, float]:
    """Return over pairs of different clients the sums of w_k w_l <P_k, P_l> and of w_k w_l ||P_k|| ||P_l||.

    Zeros where there is no pair: of one client, of factors that are zero, or where nothing was added up.
    """
    if SPAN + name not in sums:
        return 0.0, 0.0
    span_GCW, (linear, square) = sums[SPAN + name], sums[SIZES + name].unbind(-1)
    shared = float((span_GCW.square().sum((1, 2)) - square).sum())
    whole = float((linear.square() - square).sum())
    return (shared, whole) if whole > 1e-9 * float(linear.square().sum()) else (0.0, 0.0)


def _angle(overlap: tuple[float, float] | None) -> float | None:
    """Return the angle in degrees; zero where all clients have the server's factor."""
    if overlap is None:
        return 0.0
    shared, whole = overlap
    return math.degrees(math.acos(math.sqrt(min(1.0, max(0.0, shared / whole))))) if whole > 0 else None


def _effective_rank(a_GRD: Tensor, b_GOR: Tensor) -> float:
    """Mean over the slices; the singular values of B A are those of the R x R product of the QR factors."""
    small = torch.linalg.qr(b_GOR)[1] @ torch.linalg.qr(a_GRD.transpose(1, 2))[1].transpose(1, 2)
    values = torch.linalg.svdvals(small)
    share = values / values.sum(1, keepdim=True).clamp(min=1e-300)
    entropy = -(share * share.clamp(min=1e-300).log()).sum(1)
    return float(torch.where(values.sum(1) > 0, entropy.exp(), 0.0).mean())


def client_drift(mean_squared_norm: float, mean_delta: Mapping[str, Tensor]) -> float:
    """Return the clients' root mean square distance from their mean update, relative to that mean's norm.

    ``mean_squared_norm``: weighted mean of ||delta_k||^2. Zero where the mean update is zero.
    """
    norm = sum(value.square().sum().item() for value in mean_delta.values())
    return math.sqrt(max(0.0, mean_squared_norm - norm) / norm) if norm > 0 else 0.0
