"""How well a mean of LoRA factors stands for a mean of LoRA updates, and how far the clients drift apart.

The mean update is the sum over clients of w_k B_k A_k. No client's factors are collected for it: every block adds up
its products, and where a layer is wide, what they make of a few random directions, from which norms are estimated.

Shapes: K clients, G slices of a layer, R rank, D input width, O output width of a slice, C columns.
"""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Tensors, Update
from fedsim.seeding import numpy_stream

A, B = ".lora_a", ".lora_b"
#: Layers up to this input width are measured exactly, wider ones over as many random directions of signs.
EXACT_WIDTH = 64


def narrowed(a: Tensor) -> Tensor:
    """Return factors (..., D) as (..., C) float64: as they are where the layer is narrow, else times random directions.

    For signs S over the root of C the expected ||M S||_F^2 is ||M||_F^2, with a relative standard deviation of at most
    sqrt(2 / C).
    """
    width = a.shape[-1]
    return a.double() if width <= EXACT_WIDTH else a.double() @ _directions(width).to(a.device)


@cache
def _directions(width: int) -> Tensor:
    signs = numpy_stream(0, f"diagnostics/{width}").choice([-1.0, 1.0], (width, EXACT_WIDTH))
    return torch.from_numpy(signs / np.sqrt(EXACT_WIDTH))


def averaged_layers(trained: Mapping[str, Any], averaged: Mapping[str, Any]) -> list[str]:
    """Return the layers of which a factor is trained, and none that is not averaged: the others have no common one."""
    factors = [name for name in trained if name.endswith((A, B))]
    own = {name.rpartition(".")[0] for name in factors if name not in averaged}
    return sorted({name.rpartition(".")[0] for name in factors} - own)


def block_products(update: Update, averaged: Tensors) -> dict[str, Tensor]:
    """Return for each layer all of whose trained factors are averaged the block's sum of w_k B_k A_k S.

    Float64 (1, G, O, C).
    """
    products = {}
    for layer in averaged_layers(update.after, averaged):
        factors = {layer + letter: _factor(update, layer + letter) for letter in (A, B)}
        a, b = first_ranks(factors, averaged).values()
        weighted = update.weights.to(b.device).view(-1, 1, 1, 1) * b.double()
        # With the clients side by side along the rank it is one product: (G, O, K R) times (G, K R, C).
        side_by_side = weighted.permute(1, 2, 0, 3).flatten(2), narrowed(a).transpose(0, 1).flatten(1, 2)
        products[layer] = (side_by_side[0] @ side_by_side[1])[None]
    return products


def _factor(update: Update, name: str) -> Tensor:
    """One factor of every client (K, G, ...), the server's where the phase did not train it."""
    if name in update.after:
        return update.after[name]
    return update.before[name].expand(len(update.clients), *update.before[name].shape)


def first_ranks(factors: Tensors, averaged: Tensors) -> dict[str, Tensor]:
    """Return a layer's A (..., R, D) and B (..., O, R) without the ranks behind those that are averaged, if any are.

    Where clients share only the first ranks of a layer, these are what the averages stand for.
    """
    used = {name: _by_rank(averaged[name], name).shape[-1] for name in factors if name in averaged}
    return {name: _by_rank(_by_rank(value, name)[..., : min(used.values())], name) for name, value in factors.items()}


def _by_rank(factor: Tensor, name: str) -> Tensor:
    """Return a factor with its ranks in the last axis; of what that returned, the factor."""
    return factor.mT if name.endswith(A) else factor


def lora_diagnostics(products: Mapping[str, Tensor], before: Tensors, change: Tensors) -> dict[str, Any]:
    """Return aggregation deviation and effective rank, per layer and in all.

    ``products``: the sums of ``block_products`` over all blocks, (G, O, C) by layer. ``before``: the server's
    parameters that the phase began from; ``change``: the clients' mean change of those that are averaged.

    Deviation: ||mean(B A) - mean(B) mean(A)|| / ||mean(B A)||, Frobenius norms (DEeR, section III), exact for layers no
    wider than ``EXACT_WIDTH`` and estimated for others; zero where the mean update is zero. Effective rank: exp of
    the entropy of the normalised singular values of mean(B) mean(A) (Roy and Vetterli, 2007), averaged over the slices.
    """
    per_layer: dict[str, float] = {}
    error_squared = norm_squared = 0.0
    ranks = []
    for layer, product in products.items():
        factors = first_ranks({name: before[name].double() for name in (layer + A, layer + B)}, change)
        a, b = (value + change.get(name, 0) for name, value in factors.items())
        difference = product - b @ narrowed(a)
        error, norm = (value.square().sum().item() for value in (difference, product))
        # What float64 leaves of a difference of equal numbers is none.
        error = error if error > 1e-24 * norm else 0.0
        per_layer[layer] = math.sqrt(error / norm) if norm > 0 else 0.0
        error_squared, norm_squared = error_squared + error, norm_squared + norm
        ranks.append(_effective_rank(a, b))
    return {
        "aggregation_deviation": math.sqrt(error_squared / norm_squared) if norm_squared > 0 else 0.0,
        "aggregation_deviation_per_layer": per_layer,
        "effective_rank": sum(ranks) / len(ranks),
    }


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
