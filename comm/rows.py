"""Rows of single clients as bytes, which travel in a sum of int64 where they are zero on all ranks but one."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def as_int64(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return bytes side by side, as int64."""
    data = torch.cat([torch.zeros(0, dtype=torch.uint8, device=device), *(part.to(device) for part in parts)])
    return torch.cat([data, data.new_zeros(-len(data) % 8)]).view(torch.int64)


def from_int64(data: Tensor, shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut what ``as_int64`` returned for tensors like ``shapes`` back into these."""
    sizes = [value.nbytes for value in shapes.values()]
    parts = data.view(torch.uint8)[: sum(sizes)].split(sizes)
    return {
        name: part.clone().view(value.dtype).view(value.shape)
        for (name, value), part in zip(shapes.items(), parts, strict=True)
    }
