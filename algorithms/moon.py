"""MOON: a client's features are drawn towards the server's and away from its own of the last time."""

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from fedsim.algorithms.base import (
    Algorithm,
    Batch,
    Facts,
    Payload,
    Phase,
    ServerState,
    Start,
    Tensors,
    Update,
    keep,
    recall,
)
from fedsim.config.mistakes import refuse_idle
from fedsim.errors import UserError

PREVIOUS = "previous"


class MOON(Algorithm):
    """Li et al., Model-contrastive federated learning, CVPR 2021: task loss + mu * contrastive loss.

    The features are what the classifier sees; the paper puts a projection of two layers between. A client that takes
    part for the first time has the server's model for its previous one, and so no contrast.
    """

    summary = "features near the server's and away from the client's last (Li et al., 2021)"
    keeps = (PREVIOUS,)

    class Config(Algorithm.Config):
        mu: float = Field(1.0, ge=0, description="Weight of the contrastive loss; 0 is FedAvg.")
        temperature: float = Field(0.5, gt=0, description="Divisor of the cosine similarities.")

        @model_validator(mode="after")
        def _contrast_is_used(self) -> Self:
            if self.mu == 0:
                refuse_idle(self, ["temperature"], "mu: 0")
            return self

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        kinds = {spec.kind for spec in self.specs.values()}
        if not kinds & {"lora_a", "lora_b", "body", "norm"}:
            found = f"moon on a model that trains {sorted(kinds)}, and no features"
            raise UserError("algorithm.name", found, "model.train: lora or all")

    def begin(self, state: ServerState, phase: Phase, kept: Sequence[Tensors]) -> Start:
        if self.config.mu == 0:
            return Start()
        return Start(context={PREVIOUS: recall(kept, PREVIOUS, self.trained(state.params))})

    def loss(self, batch: Batch) -> Tensor:
        if self.config.mu == 0:
            return batch.task_loss
        server = batch.features_of(batch.start)
        previous = batch.features_of({**batch.start, **batch.context[PREVIOUS]})
        contrast_KB = contrastive(batch.features, server, previous, self.config.temperature)
        mu: float = self.config.mu
        return batch.task_loss + mu * (contrast_KB * batch.weights).sum(1)

    def pre_aggregate(self, update: Update) -> Payload:
        keep(update.kept, PREVIOUS, update.after)
        return super().pre_aggregate(update)


def contrastive(own: Tensor, server: Tensor, previous: Tensor, temperature: float) -> Tensor:
    """Return -log of the server's share in exp(cos(own, server) / t) + exp(cos(own, previous) / t), (K, B).

    Features (K, B, ...) of the same images.
    """
    similarities = [F.cosine_similarity(own.flatten(2), other.flatten(2), dim=-1) for other in (server, previous)]
    return -torch.stack(similarities, -1).div(temperature).log_softmax(-1)[..., 0]
