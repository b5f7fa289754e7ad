"""A sub-model's folder: what ``launch.py distill`` makes and a federated run names.

    config.yaml  submodel.safetensors  submodel.json, and the log of the distillation

submodel.json names the sha256 of the model that the tensors were made from, so that no other takes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.config.distill import DistillConfig, load_distill_config
from fedsim.config.mistakes import show
from fedsim.config.plain_yaml import require_file
from fedsim.errors import UserError
from fedsim.machine.sealed import digest_tensors, read_sealed, write_sealed
from fedsim.models.submodel.feed_forward import choose_neurons

CONFIG_FILE, TENSORS_FILE, FACTS_FILE = "config.yaml", "submodel.safetensors", "submodel.json"
# What the neurons' numbers are called in the file.
NEURONS = "neurons"


@dataclass(frozen=True)
class Submodel:
    """The feed-forwards of a model's blocks, cut to few neurons.

    ``neurons``: for each cut block the numbers of the neurons that it keeps, int64 (R,) in rising order. ``tensors``:
    float32, by their place in the model, ``blocks.<layer>.<path in the block>``; what ``FeedForward.trained`` names.
    """

    config: DistillConfig
    neurons: Mapping[int, Tensor]
    tensors: Mapping[str, Tensor]


def fingerprint(blocks: nn.ModuleList) -> str:
    """Return a sha256 over all tensors of a model's blocks, as they are before LoRA, bf16 or a layout for speed."""
    return digest_tensors(blocks.state_dict())


def make_submodel(config: DistillConfig, blocks: nn.ModuleList) -> Submodel:
    """Cut copies of these feed-forwards to the most salient neurons; errors as ``choose_neurons`` has them."""
    cut = config.submodel
    chosen = choose_neurons(blocks, cut.layers_retained, cut.intermediate_rank)
    tensors = {
        f"blocks.{number}.{path}": value
        for number, (layer, neurons) in chosen.items()
        for path, value in layer.cut(neurons).items()
    }
    return Submodel(config, {number: neurons for number, (_, neurons) in chosen.items()}, tensors)


def save_submodel(folder: Path, submodel: Submodel, model_sha256: str, facts: Mapping[str, Any]) -> None:
    """Write the tensors, then submodel.json with ``facts``, each in one step; config.yaml is there already.

    ``model_sha256``: the ``fingerprint`` of the whole model.
    """
    neurons = {f"{NEURONS}.{number}": kept for number, kept in submodel.neurons.items()}
    named = {**submodel.tensors, **neurons}
    write_sealed(folder / FACTS_FILE, TENSORS_FILE, named, {"model_sha256": model_sha256, **facts})


def load_submodel(folder: Path, blocks: nn.ModuleList, where: str) -> Submodel:
    """Read a sub-model of the model that has these ``blocks``, as ``load_encoder`` gives them: without LoRA, in fp32.

    UserError, which begins with ``where``, for a folder that is none or unfinished, damaged files, and another model's.
    """
    require_file(folder, where, folder=True)
    try:
        if not (folder / CONFIG_FILE).is_file():
            raise UserError(str(folder), f"no {CONFIG_FILE}", "a folder that launch.py distill made")
        config = load_distill_config(folder / CONFIG_FILE, check_paths=False)
        if not (folder / FACTS_FILE).exists():
            again = f"launch.py distill {folder / CONFIG_FILE} --out {folder} --resume"
            raise UserError(str(folder), "an unfinished distillation", f"a finished one: {again}")
        sealed, facts = read_sealed(folder / FACTS_FILE, "a sub-model's facts")
    except UserError as error:
        raise UserError(f"{where}: {error.where}", error.found, error.expected) from None
    if facts.get("model_sha256") != fingerprint(blocks):
        found = f"{show(str(folder))}, made from {config.model.name} with other weights, size or architecture"
        raise UserError(where, found, "a sub-model of this run's model; launch.py distill makes it")
    neurons = {int(name.rpartition(".")[2]): kept for name, kept in sealed.items() if name.startswith(f"{NEURONS}.")}
    tensors = {name: value for name, value in sealed.items() if not name.startswith(f"{NEURONS}.")}
    assert all(kept.dtype == torch.int64 for kept in neurons.values()), "read_sealed knows the file's sha256"
    return Submodel(config, neurons, tensors)
