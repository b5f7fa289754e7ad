"""What of the clients' LoRA factors is added up for the diagnostics, in the same bytes for any number of clients.

Of each layer: the weighted sum of the products B_k A_k, and of the projections onto the space that a client's factor
spans. Where a layer is wide both are sums over a few random directions only, from which norms are estimated.

Shapes: K clients, G slices of a layer, R rank, D input width, O output width of a slice, W either width, C directions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import PARAMS, Algorithm, Payload, Tensors, Update
from fedsim.models.specs import A, B
from fedsim.seeding import numpy_stream

#: Layers up to this width are measured exactly, wider ones over as many random directions of signs.
EXACT_WIDTH = 64
#: The same for spaces. Their overlaps are estimated better, see ``_spans``, and cost as much of each factor.
EXACT_SPAN = 16
#: Directions of a factor that are so small beside its largest ones count as none: squared, what is added to a Gram
#: matrix, whose inverse there always is then.
RIDGE = 1e-12
#: How the sums' names begin, behind which stands a layer's path or a factor's name.
PRODUCT, SPAN, SIZES = "product/", "span/", "sizes/"


class Trained(NamedTuple):
    """The names of a layer's factors that a phase trains, and whether clients send all of them: the server has one."""

    names: tuple[str, ...]
    are_sent: bool


class Factors(NamedTuple):
    """The factors of a layer that clients have at the end of a phase, A (K, G, R, D) and B (K, G, O, R)."""

    a: Tensor
    b: Tensor
    trained: Trained


@dataclass(frozen=True)
class FactorSums:
    """What the factors of all clients add up to: layers by path; sums by name, without first axis."""

    layers: Mapping[str, Trained]
    sums: Mapping[str, Tensor]


def narrowed(rows: Tensor, exact_width: int = EXACT_WIDTH) -> Tensor:
    """Return factors (..., W) as (..., C): as they are where the layer is narrow, else times random directions.

    For signs S over the root of C the expected ||M S||_F^2 is ||M||_F^2, with a relative standard deviation of at most
    sqrt(2 / C).
    """
    width = rows.shape[-1]
    return rows if width <= exact_width else rows @ _directions(width, exact_width, rows.device).to(rows.dtype)


@cache
def _directions(width: int, number: int, device: torch.device) -> Tensor:
    signs = numpy_stream(0, f"diagnostics/{width}").choice([-1.0, 1.0], (width, number))
    return torch.from_numpy(signs / np.sqrt(number)).to(device)


def adapted_layers(trained: Mapping[str, Any]) -> list[str]:
    """Return the layers of which a factor is among the tensors."""
    return sorted({name.rpartition(".")[0] for name in trained if name.endswith((A, B))})


def client_factors(method: Algorithm, update: Update, payload: Payload) -> dict[str, Factors]:
    """Return by layer what factors clients have, of each layer of which the phase trained one.

    Those whose changes the ``payload`` has where these are averaged, of these the first ranks if only these are;
    otherwise those of the models that clients use.
    """
    averaged = payload.mean.get(PARAMS, {})
    sends = method.sent(update.after).keys() if payload.mean or payload.total or payload.gather else ()
    used: Tensors | None = None
    found = {}
    for layer in adapted_layers(update.after):
        names = layer + A, layer + B
        trained = tuple(name for name in names if name in update.after)
        theirs = update.after
        if update.phase.models > 1 or not set(trained) <= averaged.keys():
            used = used or method.client_params(update.kept, update.before, update)["own"]
            # Of several models side by side a client uses one.
            theirs = used if update.phase.models > 1 else {**update.after, **used}
        pair = {name: _of_clients(update, theirs, name) for name in names}
        a, b = first_ranks(pair, averaged).values()
        found[layer] = Factors(a, b, Trained(trained, set(trained) <= set(sends)))
    return found


def _of_clients(update: Update, theirs: Tensors, name: str) -> Tensor:
    """Return one factor of every client (K, G, ...), the server's where clients have no other."""
    if name in theirs:
        return theirs[name]
    return update.before[name].expand(len(update.clients), *update.before[name].shape)


def first_ranks(factors: Tensors, averaged: Tensors) -> dict[str, Tensor]:
    """Return a layer's A (..., R, D) and B (..., O, R) without the ranks behind those that are averaged, if any are.

    Where clients share only the first ranks of a layer, these are what the averages stand for.
    """
    used = {name: _by_rank(averaged[name], name).shape[-1] for name in factors if name in averaged}
    if not used:
        return dict(factors)
    return {name: _by_rank(_by_rank(value, name)[..., : min(used.values())], name) for name, value in factors.items()}


def _by_rank(factor: Tensor, name: str) -> Tensor:
    """Return a factor with its ranks in the last axis; of what that returned, the factor."""
    return factor.mT if name.endswith(A) else factor


def block_products(factors: Mapping[str, Factors], weights_K: Tensor, scales_K: Tensor) -> dict[str, Tensor]:
    """Return what a block of clients adds to the sums of products, with weights that sum to one over all.

    ``PRODUCT`` of each layer whose factors are sent: the sum of w_k s_k B_k A_k S, float64 (1, G, O, C), with the
    scales s_k of the clients' products and the directions S of ``narrowed``.
    """
    sums: dict[str, Tensor] = {}
    for layer, (a, b, trained) in factors.items():
        if trained.are_sent:
            weighted = (weights_K * scales_K).to(b.device).view(-1, 1, 1, 1) * b.double()
            # With the clients side by side along the rank it is one product: (G, O, K R) times (G, K R, C).
            side_by_side = weighted.permute(1, 2, 0, 3).flatten(2), narrowed(a.double()).transpose(0, 1).flatten(1, 2)
            sums[PRODUCT + layer] = (side_by_side[0] @ side_by_side[1])[None]
    return sums


def block_spans(factors: Mapping[str, Factors], weights_K: Tensor) -> dict[str, Tensor]:
    """Return what a block of clients adds to the sums of projections, float64 (1, ...), with weights as there.

    Of each factor that trained, with P_k the projection onto the space of its ranks and fewer directions S: ``SPAN``,
    the sum of w_k S' P_k, (1, G, C, W), and ``SIZES``, the sums of w_k ||P_k S|| and w_k^2 ||P_k S||^2, (1, G, 2).
    """
    sums: dict[str, Tensor] = {}
    alike: dict[tuple[int, ...], dict[str, Tensor]] = {}
    for a, b, trained in factors.values():
        for name in trained.names:
            rows = a if name.endswith(A) else b.mT
            alike.setdefault(rows.shape[2:], {})[name] = rows
    # Factors of one shape are so many slices of one: operations have a price of their own.
    for named in alike.values():
        shared, sizes = _spans(torch.cat(list(named.values()), 1), weights_K)
        parts = [rows.shape[1] for rows in named.values()]
        sums |= {SPAN + name: part[None] for name, part in zip(named, shared.split(parts), strict=True)}
        sums |= {SIZES + name: part[None] for name, part in zip(named, sizes.split(parts), strict=True)}
    return sums


def _spans(rows_KGRW: Tensor, weights_K: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of the projections onto the spaces of the rows, (G, C, W), and of their sizes, (G, 2).

    Of the overlap <P_k, P_l> over C directions the standard deviation is at most sqrt(2 <P_k, P_l> / C): there is none
    between spaces that have nothing in common.
    """
    weights, exact = weights_K.to(rows_KGRW.device), rows_KGRW.double()
    # All that is as wide as the layer, but what is inverted, is cheap in float32; of which a GPU may drop bits.
    rows = exact if exact.is_cuda else rows_KGRW.float()
    gram = exact @ exact.mT
    size = gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    ridge = (RIDGE * size + torch.finfo(torch.float64).tiny).expand(gram.shape[:-1])
    # P S = F' (F F')^-1 F S, for the rows F; spaces of fewer dimensions than there are rows come out as they are.
    # Numbers that are none stay so, and are refused where they are added up.
    root = torch.linalg.cholesky_ex(gram + ridge.diag_embed())[0]
    within = torch.cholesky_solve(narrowed(rows, EXACT_SPAN).double(), root)
    squares_KG = (within * (gram @ within)).sum((-2, -1)).clamp(min=0)
    sizes = torch.stack([weights @ squares_KG.sqrt(), weights.square() @ squares_KG], -1)
    weighted = (weights.view(-1, 1, 1, 1) * within).to(rows.dtype)
    # With the clients side by side along the rank it is one product: (G, C, K R) times (G, K R, W).
    left, right = (part.transpose(0, 1).flatten(1, 2) for part in (weighted, rows))
    return (left.mT @ right).double(), sizes
