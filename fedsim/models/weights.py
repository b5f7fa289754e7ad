"""Weights out of files, under the names of the network that they are for, and what must hold of every built model."""

import argparse
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedsim.catalogue.models import WEIGHT_FILES
from fedsim.errors import UserError
from fedsim.models.hub import user_errors

WEIGHTS = "weights as floating-point numbers"
#: What training programs put a network's tensors under, the one that is preferred first: DINO's teacher is what it
#: publishes.
CONTAINERS = ("state_dict", "model_state_dict", "model", "teacher", "student")
#: What they, and modules around the network, put before its names.
PREFIX = re.compile(r"(module|_orig_mod|model|state_dict|teacher|student|backbone|encoder|net)\.")
#: What stands beside an encoder in files of pre-training: MAE's decoder, and heads.
BESIDE = re.compile(r"(decoder|mask_token|((dino_|ibot_|mim_|projection_)?heads?|fc|classifier|predictor|projector)\.)")


def read_weights(path: Path, where: str) -> dict[str, Tensor]:
    """All tensors of a file; UserError, which names it, for a file that is missing, damaged or of another format.

    What ``torch.save`` wrote is read with ``weights_only``, which runs no code of the file's.
    """
    if not path.is_file():
        raise UserError(where, f"no file {path}", f"a file that ends in {', '.join(WEIGHT_FILES)}")
    place = where if str(path) in where else f"{where}: {path.name}"
    if path.suffix == ".safetensors":
        with user_errors(place, "a safetensors file"):
            state: dict[str, Tensor] = load_file(path)
        return state
    expected = "tensors by name, as torch.save writes them, and nothing that would have to be run"
    # A program's own command line, which MAE's and timm's write beside the weights, is no code either.
    with user_errors(place, expected), torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    return _tensors_in(content, place, expected)


def _tensors_in(content: Any, where: str, expected: str) -> dict[str, Tensor]:
    """The tensors of a network in what ``torch.load`` gives, out of what they are wrapped in."""
    while isinstance(content, Mapping):
        inner = [content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping):
        raise UserError(where, f"a file of {type(content).__name__}", expected)
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(where, f"{name!r} of {type(value).__name__}", expected)
    return dict(content)


def under_names(
    state: Mapping[str, Tensor], wanted: Collection[str], where: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return a file's tensors under the names ``wanted``, and those that belong to what stands beside an encoder.

    The names' common beginning (module., model., teacher.backbone. ...) is taken off, so that most of them fit.
    UserError for a tensor that fits nowhere.
    """
    begin = max(_beginnings(state), key=lambda begin: (sum(begin + name in state for name in wanted), -len(begin)))
    found, beside = {}, []
    for name, tensor in state.items():
        inner = name.removeprefix(begin)
        if name.startswith(begin) and inner in wanted:
            found[inner] = tensor
        elif BESIDE.match(_bare(name)):
            beside.append(name)
        else:
            raise UserError(where, f"a tensor {name}", "none that the network lacks, but for a decoder or a head")
    return found, tuple(beside)


def left_out_remarks(names: Collection[str]) -> tuple[str, ...]:
    """A line for the person who starts a run, where tensors of a file are used nowhere."""
    if not names:
        return ()
    parts = sorted({_bare(name).partition(".")[0] for name in names})
    return (f"of model.weights {len(names)} tensors belong to no encoder and are left out: {', '.join(parts)}",)


def load_into(net: nn.Module, path: Path, where: str) -> None:
    """Let a network have the tensors of a file, all of them.

    UserError for a tensor that is missing, of another shape, or fits nowhere.
    """
    state, left_out = under_names(in_float32(read_weights(path, where)), net.state_dict().keys(), where)
    if left_out:
        raise UserError(where, f"a tensor {left_out[0]}", "none that the network lacks")
    check_kinds(state, net, where)
    with user_errors(where, "weights of this network"):
        net.load_state_dict(state)


def _beginnings(names: Collection[str]) -> list[str]:
    """What could be taken off in front of names: nothing, or one of the known beginnings after another."""
    found = {""}
    for name in names:
        rest = name
        while match := PREFIX.match(rest):
            rest = rest[match.end() :]
            found.add(name[: len(name) - len(rest)])
    return sorted(found)


def _bare(name: str) -> str:
    """A name without any of the known beginnings."""
    while match := PREFIX.match(name):
        name = name[match.end() :]
    return name


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
    """UserError unless all tensors that a checkpoint of ``model`` would hold have elements, and finite ones.

    A kind of tokens of which the network has none, (1, 0, D), is no layer: DINOv3's registers, by its settings.
    """
    for name, tensor in model.state_dict().items():
        if not tensor.numel() and not (tensor.dim() == 3 and tensor.shape[:2] == (1, 0) and tensor.shape[2] > 0):
            raise UserError(where, f"tensor {name} of shape {tuple(tensor.shape)}", "layers with at least one element")
        if not torch.isfinite(tensor).all():
            raise UserError(where, f"tensor {name} with {_first_odd(tensor)}", "finite numbers")


def _first_odd(tensor: Tensor) -> str:
    return str(tensor[~torch.isfinite(tensor)][0].item())
