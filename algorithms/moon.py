"""MOON: a client's features are drawn towards the server's and away from its own of the last time."""

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from algorithms.base import Algorithm, Batch, Payload, Update, keep, recall
from fedsim.config_errors import refuse_idle
from fedsim.errors import UserError
from fedsim.models.specs import ParamSpec

PREVIOUS = "previous/"


class MOON(Algorithm):
    """Li et al., Model-contrastive federated learning, CVPR 2021: task loss + mu * contrastive loss.

    The features are what the classifier sees; the paper puts a projection of two layers between. A client that takes
    part for the first time has the server's model for its previous one, and so no contrast.
    """

    summary = "features near the server's and away from the client's last (Li et al., 2021)"
    keeps_client_state = True

    class Config(Algorithm.Config):
        mu: float = Field(1.0, ge=0, description="Weight of the contrastive loss; 0 is FedAvg.")
        temperature: float = Field(0.5, gt=0, description="Divisor of the cosine similarities.")

        @model_validator(mode="after")
        def _contrast_is_used(self) -> Self:
            if self.mu == 0:
                refuse_idle(self, ["temperature"], "mu: 0")
            return self

    def __init__(self, config: Any, specs: Mapping[str, ParamSpec], num_rounds: int = 1) -> None:
        super().__init__(config, specs, num_rounds)
        kinds = {spec.kind for spec in specs.values()}
        if not kinds & {"lora_a", "lora_b", "body", "norm"}:
            found = f"moon on a model that trains {sorted(kinds)}, and no features"
            raise UserError("algorithm.name", found, "model.train: lora or all")

    def loss(self, batch: Batch) -> Tensor:
        if self.config.mu == 0:
            return batch.task_loss
        server = batch.features_of(batch.start)
        previous = batch.features_of({**batch.start, **recall(batch.states, PREVIOUS, self.trained(batch.start))})
        contrast_KB = contrastive(batch.features, server, previous, self.config.temperature)
        mu: float = self.config.mu
        return batch.task_loss + mu * (contrast_KB * batch.weights).sum(1)

    def pre_aggregate(self, update: Update) -> Payload:
        keep(update.states, PREVIOUS, update.after)
        return super().pre_aggregate(update)


def contrastive(own: Tensor, server: Tensor, previous: Tensor, temperature: float) -> Tensor:
    """Return -log of the server's share in exp(cos(own, server) / t) + exp(cos(own, previous) / t), (K, B).

    Features (K, B, ...) of the same images.
    """
    similarities = [F.cosine_similarity(own.flatten(2), other.flatten(2), dim=-1) for other in (server, previous)]
    return -torch.stack(similarities, -1).div(temperature).log_softmax(-1)[..., 0]
