"""Weights out of safetensors files, and what must hold of every model that was built with some."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedsim.errors import UserError
from fedsim.models.hub import user_errors

WEIGHTS = "weights as floating-point numbers"


def read_weights(path: Path, where: str) -> dict[str, Tensor]:
    """All tensors of a file; UserError, which names it, for a file that is missing, damaged or of another format."""
    if not path.is_file():
        raise UserError(where, f"no file {path}", "a .safetensors file")
    with user_errors(where if str(path) in where else f"{where}: {path.name}", "a safetensors file"):
        state: dict[str, Tensor] = load_file(path)
    return state


def in_float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with all floating-point numbers in float32: ``model.precision`` alone says how is computed."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def check_kinds(state: Mapping[str, Tensor], model: nn.Module, where: str) -> None:
    """UserError for a tensor of integers in place of weights.

    A file may hold those that ``model`` counts or indexes with; libraries rename what comes before the last dot.
    """
    indices = {name.rpartition(".")[2] for name, buffer in model.named_buffers() if not buffer.is_floating_point()}
    for name, tensor in state.items():
        if not tensor.is_floating_point() and name.rpartition(".")[2] not in indices:
            raise UserError(where, f"tensor {name} of {str(tensor.dtype).removeprefix('torch.')}", WEIGHTS)


def check_values(model: nn.Module, where: str) -> None:
    """UserError unless all tensors that a checkpoint of ``model`` would hold have elements, and finite ones."""
    for name, tensor in model.state_dict().items():
        if not tensor.numel():
            raise UserError(where, f"tensor {name} of shape {tuple(tensor.shape)}", "layers with at least one element")
        if not torch.isfinite(tensor).all():
            raise UserError(where, f"tensor {name} with {_first_odd(tensor)}", "finite numbers")


def _first_odd(tensor: Tensor) -> str:
    return str(tensor[~torch.isfinite(tensor)][0].item())
