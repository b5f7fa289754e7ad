"""What of the clients' LoRA factors is added up for the diagnostics, in the same bytes for any number of clients.

Of each layer: the weighted sum of the products B_k A_k, and of the projections onto the space that a client's factor
spans. Where a layer is wide both are sums over a few random directions only, from which norms are estimated.

Shapes: K clients, G slices of a layer, R rank, D input width, O output width of a slice, W either width, C directions.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Tensors, Update
from fedsim.models.specs import A, B
from fedsim.seeding import numpy_stream

#: Layers up to this width are measured exactly, wider ones over as many random directions of signs.
EXACT_WIDTH = 64
#: Directions of a factor that are so small beside its largest ones count as none: squared, what is added to a Gram
#: matrix, whose inverse there always is then.
RIDGE = 1e-12
#: How the sums' names begin, behind which stands a layer's path or a factor's name.
PRODUCT, SPAN, SIZES = "product/", "span/", "sizes/"


class Factors(NamedTuple):
    """The factors of a layer that clients have at the end of a phase, A (K, G, R, D) and B (K, G, O, R).

    ``trained``: the names of those that the phase trained, of which clients may differ.
    """

    a: Tensor
    b: Tensor
    trained: tuple[str, ...]


def narrowed(rows: Tensor) -> Tensor:
    """Return factors (..., W) as (..., C) float64: as they are where the layer is narrow, else times random directions.

    For signs S over the root of C the expected ||M S||_F^2 is ||M||_F^2, with a relative standard deviation of at most
    sqrt(2 / C).
    """
    width = rows.shape[-1]
    return rows.double() if width <= EXACT_WIDTH else rows.double() @ _directions(width, rows.device)


@cache
def _directions(width: int, device: torch.device) -> Tensor:
    signs = numpy_stream(0, f"diagnostics/{width}").choice([-1.0, 1.0], (width, EXACT_WIDTH))
    return torch.from_numpy(signs / np.sqrt(EXACT_WIDTH)).to(device)


def adapted_layers(trained: Mapping[str, Any]) -> list[str]:
    """Return the layers of which a factor is among the tensors."""
    return sorted({name.rpartition(".")[0] for name in trained if name.endswith((A, B))})


def client_factors(method: Algorithm, update: Update, averaged: Tensors) -> dict[str, Factors]:
    """Return by layer what factors clients have, of each layer of which the phase trained one.

    Those that they send where all are ``averaged``, of these the first ranks if only these are; otherwise those of the
    models that they use.
    """
    layers = adapted_layers(update.after)
    trained = {layer: tuple(name for name in (layer + A, layer + B) if name in update.after) for layer in layers}
    sent = {layer for layer in layers if update.phase.models == 1 and set(trained[layer]) <= averaged.keys()}
    used: Tensors = {}
    if len(sent) < len(layers):
        own = method.client_params(update.kept, update.before, update)["own"]
        # Of several models side by side a client uses one.
        used = {**update.after, **own} if update.phase.models == 1 else own
    found = {}
    for layer in layers:
        theirs = update.after if layer in sent else used
        pair = {name: _of_clients(update, theirs, name) for name in (layer + A, layer + B)}
        a, b = first_ranks(pair, averaged).values()
        found[layer] = Factors(a, b, trained[layer])
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


def block_sums(
    factors: Mapping[str, Factors], weights_K: Tensor, scales_K: Tensor, *, products: bool = True
) -> dict[str, Tensor]:
    """Return what a block of clients adds to the sums of all, float64 (1, ...), with weights that sum to one over all.

    Of each layer ``PRODUCT``: the sum of w_k s_k B_k A_k S, (G, O, C), with the scales s_k of the clients' products and
    the directions S of ``narrowed``, if ``products`` are wanted. Of each factor that trained, with P_k the projection
    onto the space of its ranks: ``SPAN``, the sum of w_k P_k S, (G, W, C), and ``SIZES``, the sums of w_k ||P_k S|| and
    w_k^2 ||P_k S||^2, (G, 2).
    """
    sums: dict[str, Tensor] = {}
    for layer, (a, b, trained) in factors.items():
        weights, scales = weights_K.to(b.device), scales_K.to(b.device)
        if products:
            weighted = (weights * scales).view(-1, 1, 1, 1) * b.double()
            sums[PRODUCT + layer] = _side_by_side(weighted.mT, narrowed(a))[None]
        for name in trained:
            rows = a if name.endswith(A) else b.mT
            sums[SPAN + name], sums[SIZES + name] = _spans(rows.double(), weights)
    return sums


def _spans(rows_KGRW: Tensor, weights_K: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of the projections onto the spaces of the rows, and of their sizes."""
    gram = rows_KGRW @ rows_KGRW.mT
    size = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None]
    ridge = (RIDGE * size + torch.finfo(torch.float64).tiny).expand(gram.shape[:-1])
    # P S = F' (F F')^-1 F S, for the rows F; spaces of fewer dimensions than there are rows come out as they are.
    # Numbers that are none stay so, and are refused where they are added up.
    root = torch.linalg.cholesky_ex(gram + ridge.diag_embed())[0]
    within = torch.cholesky_solve(narrowed(rows_KGRW), root)
    squares_KG = (within * (gram @ within)).sum((-2, -1)).clamp(min=0)
    weights = weights_K[:, None]
    sizes = torch.stack([(weights * squares_KG.sqrt()).sum(0), (weights.square() * squares_KG).sum(0)], -1)
    return _side_by_side(weights_K.view(-1, 1, 1, 1) * rows_KGRW, within)[None], sizes[None]


def _side_by_side(left_KGRW: Tensor, right_KGRC: Tensor) -> Tensor:
    """Return the sum over clients of left' right, (G, W, C), as one product: (G, W, K R) times (G, K R, C)."""
    return left_KGRW.permute(1, 3, 0, 2).flatten(2) @ right_KGRC.transpose(0, 1).flatten(1, 2)
