"""The trained parameters of a model as one vector, and of a block's models as one matrix.

Shapes: K models, P trained parameters of one model.
"""

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor


class Layout:
    """Where each trained parameter lies in a client's flat vector."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.sizes = [int(np.prod(shape)) for shape in self.shapes.values()]

    def pack(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Return parameters (K, ...) as one matrix (K, P)."""
        # Sizes by name: without clients -1 would be ambiguous.
        sizes = zip(self.shapes, self.sizes, strict=True)
        return torch.cat([rows[name].reshape(len(rows[name]), size) for name, size in sizes], dim=1)

    def columns(self, names: Collection[str]) -> list[slice]:
        """Return where these parameters lie."""
        ends = np.cumsum(self.sizes).tolist()
        places = zip(self.shapes, self.sizes, ends, strict=True)
        return [slice(end - size, end) for name, size, end in places if name in names]

    def unpack(self, flat_KP: Tensor) -> dict[str, Tensor]:
        """Return named views (K, ...) of the matrix; the backward pass of the split is one concatenation."""
        parts = flat_KP.split(self.sizes, dim=1)
        shapes = self.shapes.items()
        return {name: part.view(len(flat_KP), *shape) for (name, shape), part in zip(shapes, parts, strict=True)}
