"""HarmoFL: images with one amplitude spectrum on all clients, and flat local optima."""

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.algorithms.base import PARAMS, Aggregate, Facts, GradOf, Payload, ServerState, Step, Tensors, Update
from fedsim.algorithms.parts.ascent import moved, steepest
from fedsim.algorithms.parts.personal import Personal
from fedsim.errors import UserError
from fedsim.models.specs import AMPLITUDE, AMPLITUDE_IS_FIXED

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

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        if AMPLITUDE not in self.specs:
            raise UserError("model.amplitude_norm", "null with algorithm.name: harmofl", "a section, {} for defaults")

    def gradient(self, params: Tensors, grad_of: GradOf, step: Step) -> Tensors:
        grads, alpha = grad_of(params), self.config.alpha
        return grad_of(moved(params, steepest(grads, self.specs, alpha))) if alpha else grads

    def pre_aggregate(self, update: Update) -> Payload:
        payload = super().pre_aggregate(update)
        if self.config.share_target != "first" or update.round == 1:
            return payload
        # The targets have met and stay: nothing of them needs to be sent any more.
        return Payload(mean={PARAMS: {name: v for name, v in payload.mean[PARAMS].items() if name not in TARGET}})

    def post_aggregate(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        after = super().post_aggregate(state, aggregate)
        if self.config.share_target != "first":
            return after
        is_fixed = torch.ones_like(after.params[AMPLITUDE_IS_FIXED])
        return replace(after, params={**after.params, AMPLITUDE_IS_FIXED: is_fixed})

    def _own(self, tensors: Tensors) -> dict[str, Tensor]:
        keeps = self.config.share_target == "never"
        return {name: value for name, value in tensors.items() if keeps and name == AMPLITUDE}
