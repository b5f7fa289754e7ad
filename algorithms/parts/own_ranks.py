"""LoRA factors of clients that have ranks of their own, padded with zeros to the largest.

Shapes: K clients, G slices of a layer, R the largest rank, D input width, O width of a slice.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedsim.algorithms.contract import Facts, Tensors
from fedsim.errors import UserError
from fedsim.models.specs import FACTORS, ParamSpec


def require_ranks(facts: Facts, name: str) -> tuple[int, ...]:
    """Return the clients' ranks; UserError where the method ``name`` has nothing to do, since all have the same."""
    if facts.ranks is None:
        raise UserError("model.lora.ranks", f"null with algorithm.name: {name}", "ranks that differ, or fedavg")
    return facts.ranks


def refuse_ranks(facts: Facts, name: str) -> None:
    """UserError where clients have ranks of their own, which the method ``name`` makes no sense of."""
    if facts.ranks is not None:
        raise UserError("model.lora.ranks", f"ranks with algorithm.name: {name}", "null, or another method")


def ranks_of(facts: Facts, clients: Sequence[int]) -> Tensor | None:
    """Return the ranks (K,) of some clients, None where all have the same."""
    return None if facts.ranks is None else torch.tensor([facts.ranks[client] for client in clients])


def scales_of(facts: Facts, clients: Sequence[int]) -> Tensor:
    """Return the scales (K,) of some clients' products beside the server's, float64; one where all have one rank."""
    scales = [1.0 if facts.scales is None else facts.scales[client] for client in clients]
    return torch.tensor(scales, dtype=torch.float64)


def held(spec: ParamSpec, rank_K: Tensor) -> Tensor:
    """Return which of a factor's rows of A, or columns of B, clients of these ranks have: bool (K, 1, R, 1 or R)."""
    rank_axis = 1 if spec.kind == "lora_a" else 2
    shape = [-1 if axis == rank_axis else 1 for axis in range(3)]
    return torch.arange(spec.shape[rank_axis], device=rank_K.device).view(shape) < rank_K.view(-1, 1, 1, 1)


def within(tensors: Tensors, specs: Mapping[str, ParamSpec], rank_K: Tensor | None) -> dict[str, Tensor]:
    """Return tensors by the parameters' names, of factors (K, ...) or (...) only what clients of these ranks have.

    The rest is zero; what is no factor stays as it is, and without ranks all does.
    """
    found = dict(tensors)
    if rank_K is None:
        return found
    for name, value in tensors.items():
        if specs[name].kind in FACTORS:
            found[name] = torch.where(held(specs[name], rank_K.to(value.device)), value, value.new_zeros(()))
    return found


def product_norm(tensors: Tensors) -> Tensor:
    """Return ||B_k A_k|| over all layers of factors (K, ...), float64 (K,), without forming a product."""
    squares = [((a @ a.mT) * (b.mT @ b)).sum((1, 2, 3)) for a, b in factor_pairs(tensors)]
    # What float64 leaves of a product of zeros may lie below zero.
    return torch.stack(squares).sum(0).clamp(min=0).sqrt()


def tail_norm(tensors: Tensors, start_K: Tensor, stop_K: Tensor) -> Tensor:
    """Return the sum over all matrices of ||B_k[:, start:stop]|| ||A_k[start:stop]|| of factors (K, ...), (K,)."""
    found = []
    for a_KGRD, b_KGOR in factor_pairs(tensors, None):
        place = torch.arange(a_KGRD.shape[-2], device=a_KGRD.device)
        start, stop = (bound_K.to(place.device)[:, None] for bound_K in (start_K, stop_K))
        inside_KR = (place >= start) & (place < stop)
        a = torch.linalg.vector_norm(a_KGRD * inside_KR[:, None, :, None], dim=(-2, -1))
        b = torch.linalg.vector_norm(b_KGOR * inside_KR[:, None, None, :], dim=(-2, -1))
        found.append((a * b).sum(1))
    return torch.stack(found).sum(0)


def factor_pairs(tensors: Tensors, dtype: torch.dtype | None = torch.float64) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the factors A and B of every layer, in this type, or in their own."""
    for name, a in tensors.items():
        if name.endswith(".lora_a"):
            b = tensors[name.removesuffix("a") + "b"]
            yield a.to(dtype or a.dtype), b.to(dtype or b.dtype)
