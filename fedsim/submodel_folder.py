"""A sub-model's folder: what ``launch.py distill`` makes and a federated run names.

    config.yaml  submodel.safetensors  submodel.json, and the log of the distillation

submodel.json names the sha256 of the tensors and of the model that they were made from, so that no other takes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fedsim.config_distill import DistillConfig

TENSORS_FILE, FACTS_FILE = "submodel.safetensors", "submodel.json"


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
    raise NotImplementedError


def make_submodel(config: DistillConfig, blocks: nn.ModuleList) -> Submodel:
    """Cut copies of the feed-forwards of ``blocks``; see ``compress`` for the errors."""
    raise NotImplementedError


def save_submodel(folder: Path, submodel: Submodel, blocks: nn.ModuleList, facts: Mapping[str, Any]) -> None:
    """Write the tensors and then submodel.json with ``facts``, each in one step; config.yaml is there already."""
    raise NotImplementedError


def load_submodel(folder: Path, blocks: nn.ModuleList, where: str) -> Submodel:
    """Read a sub-model of the model that has these ``blocks``, as ``load_encoder`` gives them: without LoRA, in fp32.

    UserError, which begins with ``where``, for a folder that is none or unfinished, damaged files, and another model's.
    """
    raise NotImplementedError
