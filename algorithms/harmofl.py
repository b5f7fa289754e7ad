"""HarmoFL: images with one amplitude spectrum on all clients, and flat local optima."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from algorithms.base import Aggregate, Payload, ServerState, Update
from algorithms.personal import Personal
from fedsim.ascent import steepest
from fedsim.errors import UserError
from fedsim.models.specs import AMPLITUDE, AMPLITUDE_IS_FIXED, ParamSpec

TARGET = (AMPLITUDE, AMPLITUDE_IS_FIXED)


class HarmoFL(Personal):
    """Jiang et al., HarmoFL: Harmonizing local and global drifts in federated learning, AAAI 2022, algorithm 1.

    The model normalises the images' amplitudes (``model.amplitude_norm``); the clients' targets are averaged with
    the weights. Every local step uses the gradient at weights moved by alpha g / ||g||, which without the
    normalisation is FedSAM.
    """

    summary = "one amplitude spectrum for all images, and flat optima (Jiang et al., 2022)"

    class Config(Personal.Config):
        alpha: float = Field(0.05, ge=0, description="Length of the move before the second gradient; 0: none.")
        share_target: Literal["first", "every", "never"] = Field(
            "first",
            description="Rounds after which the targets of the amplitudes are averaged; first: they then stay.",
        )

    def __init__(self, config: Any, specs: Mapping[str, ParamSpec], num_rounds: int = 1) -> None:
        super().__init__(config, specs, num_rounds)
        if AMPLITUDE not in specs:
            raise UserError("model.amplitude_norm", "null with algorithm.name: harmofl", "a section, {} for defaults")

    def ascend(self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        del params
        alpha: float = self.config.alpha
        return steepest(grads, self.specs, alpha) if alpha else {}

    def pre_aggregate(self, update: Update) -> Payload:
        payload = super().pre_aggregate(update)
        if self.config.share_target != "first" or update.round == 1:
            return payload
        # The targets have met and stay: nothing of them needs to be sent any more.
        return Payload(mean={name: value for name, value in payload.mean.items() if name not in TARGET})

    def post_aggregate(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        after = super().post_aggregate(state, aggregate)
        if self.config.share_target != "first":
            return after
        is_fixed = torch.ones_like(after.params[AMPLITUDE_IS_FIXED])
        return replace(after, params={**after.params, AMPLITUDE_IS_FIXED: is_fixed})

    def _kept(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        keeps = self.config.share_target == "never"
        return {name: value for name, value in tensors.items() if keeps and name == AMPLITUDE}
