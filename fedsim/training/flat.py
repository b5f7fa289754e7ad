"""The trained parameters of a model as one vector, and of a block's models as one matrix.

Weights of convolutions lie in it with their input channels last, as PyTorch's fastest convolutions on a CPU take them.

Shapes: K models, P trained parameters of one model.
"""

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

#: Numbers that a CPU's cache holds with what is computed of them.
NUMBERS_AT_ONCE = 2**17


def pieces(flat_KP: Tensor) -> list[slice]:
    """Return columns that element by element are best treated at once: on a CPU what stays in its cache, else all."""
    num_rows, num_columns = flat_KP.shape
    step = max(1, NUMBERS_AT_ONCE // max(1, num_rows)) if flat_KP.device.type == "cpu" else num_columns
    return [slice(start, start + step) for start in range(0, num_columns, max(1, step))]


class Layout:
    """Where each trained parameter lies in a client's flat vector."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.sizes = [int(np.prod(shape)) for shape in self.shapes.values()]

    def pack(self, rows: Mapping[str, Tensor], out: Tensor | None = None) -> Tensor:
        """Return parameters (K, ...) as one matrix (K, P), which is ``out`` where that is given."""
        # Sizes by name: without clients -1 would be ambiguous.
        sizes = zip(self.shapes, self.sizes, strict=True)
        parts = [_inputs_last(rows[name]).reshape(len(rows[name]), size) for name, size in sizes]
        return torch.cat(parts, dim=1, out=out)

    def columns(self, names: Collection[str]) -> list[slice]:
        """Return where these parameters lie."""
        ends = np.cumsum(self.sizes).tolist()
        places = zip(self.shapes, self.sizes, ends, strict=True)
        return [slice(end - size, end) for name, size, end in places if name in names]

    def unpack(self, flat_KP: Tensor) -> dict[str, Tensor]:
        """Return named views (K, ...) of the matrix."""
        parts = flat_KP.split(self.sizes, dim=1)
        shapes = self.shapes.items()
        return {name: _view(part, shape) for (name, shape), part in zip(shapes, parts, strict=True)}


def _inputs_last(value: Tensor) -> Tensor:
    """Convolutions' weights (K, O, C, H, W) as (K, O, H, W, C); others stay."""
    return value.permute(0, 1, 3, 4, 2) if value.dim() == 5 else value


def _view(part_KP: Tensor, shape: tuple[int, ...]) -> Tensor:
    if len(shape) != 4:
        return part_KP.view(len(part_KP), *shape)
    outputs, inputs, *window = shape
    return part_KP.view(len(part_KP), outputs, *window, inputs).permute(0, 1, 4, 2, 3)
