"""Distillation of a sub-model on all ranks: chosen elements of its tensors, trained to give the whole model's states.

A step's batch is cut into micro-batches that follow from the config alone; the ranks share them out, and their
gradients are added up exactly, so no bit depends on the number of ranks.

Shapes: N inputs, B inputs of a micro-batch, T tokens, D width, P chosen elements of all tensors together.
Source: Peng et al., FedPFT, IJCAI 2024 (arXiv 2404.11536), layer-level and neuron-level distillation.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from comm import Group
from fedsim.config_distill import DistillSettings
from fedsim.images import ImageSource
from fedsim.models.stacked import StackedModel


@dataclass(frozen=True)
class Pair:
    """The whole model (teacher) and the sub-model that clients hold (student), each with the parameters it has."""

    full: StackedModel
    held: StackedModel
    full_params: Mapping[str, Tensor]
    held_params: Mapping[str, Tensor]


class Distiller:
    """A distillation: its steps one by one, and its state between them.

    ``chosen``: names in ``pair.held_params``, ``submodel.blocks.<layer>.<path>``, each with a bool tensor of its shape;
    where it is true the element trains, all else keeps its bits. ``places``: the inputs' indices in ``source``.
    ``seed``, ``purpose`` and ``round`` name the streams from which their order is drawn.
    """

    def __init__(
        self,
        pair: Pair,
        chosen: Mapping[str, Tensor],
        source: ImageSource,
        places: np.ndarray,
        settings: DistillSettings,
        group: Group,
        *,
        seed: int,
        purpose: str,
        round: int = 0,
    ) -> None:
        raise NotImplementedError

    @property
    def num_steps(self) -> int:
        """Steps of the whole distillation."""
        raise NotImplementedError

    def steps(self) -> Iterator[dict[str, Any]]:
        """Take the steps that are left; yield after each its row: step (from 1), loss, its two parts, lr."""
        raise NotImplementedError

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The sub-model's tensors by the names of ``chosen``, as they are now."""
        raise NotImplementedError
