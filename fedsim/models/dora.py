"""DoRA: every output of a layer with low-rank factors has a trained magnitude in place of its weight row's norm.

Shapes: K clients in a block (1 where they share a factor), G adapted of S slices of a layer's output, R rank, D input
width, O width of one slice, M rows per client.
Source: Liu et al., DoRA, ICML 2024, equations 5 and 11: the norm counts as a constant in the gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.kernels.frozen import FrozenProduct, multiply


def with_magnitudes(
    out_KMSO: Tensor,
    magnitude_KGO: Tensor,
    norms_KGO: Tensor,
    bias: Tensor | None,
    targets: Sequence[int],
) -> Tensor:
    """Return magnitude / norm times the output of W + s B A on the slices ``targets``; the bias stays as it is."""
    _, _, num_slices, width = out_KMSO.shape
    scale_KSO = out_KMSO.new_ones(len(out_KMSO), num_slices, width, dtype=torch.float32)
    scale_KSO = scale_KSO.index_copy(1, torch.tensor(targets, device=scale_KSO.device), magnitude_KGO / norms_KGO)
    scale_K1SO = scale_KSO.to(out_KMSO.dtype)[:, None]
    if bias is None:
        return out_KMSO * scale_K1SO
    bias_SO = bias.view(num_slices, width)
    return (out_KMSO - bias_SO) * scale_K1SO + bias_SO


@torch.no_grad()
def row_norms(
    squares_GO: Tensor, product: FrozenProduct, a: Tensor, b: Tensor, targets: Sequence[int], scaling: float | Tensor
) -> Tensor:
    """Return the norms of the rows of W + s B A on the slices ``targets`` of ``product``'s W, float32 (K, G, O).

    ``squares_GO``: the squared norms of those rows of W. Neither B A nor a copy of W is formed.
    """
    a_KGRD, b_KGOR = (factor.float().expand(max(len(a), len(b)), -1, -1, -1) for factor in (a, b))
    rows = a_KGRD.reshape(-1, a.shape[-1]).to(product.weight.dtype)
    crossed = multiply(rows, product.weight, None).float().view(*a_KGRD.shape[:3], -1, b.shape[2])
    crossed_KGRO = torch.stack([crossed[:, place, :, target] for place, target in enumerate(targets)], 1)
    scale = scaling.view(-1, 1, 1) if isinstance(scaling, Tensor) else scaling
    cross = (b_KGOR * crossed_KGRO.mT).sum(-1)
    square = (b_KGOR @ (a_KGRD @ a_KGRD.mT) * b_KGOR).sum(-1)
    # What rounding leaves of a row that is taken away whole may lie below zero.
    return (squares_GO + 2 * scale * cross + scale**2 * square).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
