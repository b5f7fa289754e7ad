"""Ditto: beside FedAvg's model every client trains one of its own that is drawn towards it."""

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from fedsim.algorithms.base import (
    Algorithm,
    Batch,
    Groups,
    Payload,
    Phase,
    ServerState,
    Start,
    Tensors,
    Update,
    keep,
    recall,
    squared_distance,
)
from fedsim.algorithms.parts.personal import OWN

PERSONAL = Phase("personal")


class Ditto(Algorithm):
    """Li et al., Ditto: Fair and robust federated learning through personalization, ICML 2021, algorithm 1.

    The personal objective is the local loss + strength / 2 * ||v - w||^2, w the server's model at the round's
    start. The server's model is FedAvg's, bit for bit.
    """

    summary = "FedAvg, and personal models drawn towards it (Li et al., 2021)"
    keeps = (OWN,)

    class Config(Algorithm.Config):
        strength: float = Field(0.1, ge=0, description="Pull of the personal models towards the server's; lambda.")

    def phases(self, round: int) -> tuple[Phase, ...]:
        # The personal models come first, while the server's is still the round's first.
        return (PERSONAL, Phase())

    def begin(self, state: ServerState, phase: Phase, kept: Sequence[Tensors]) -> Start:
        return Start(recall(kept, OWN, self.trained(state.params)) if phase == PERSONAL else {})

    def loss(self, batch: Batch) -> Tensor:
        loss_K = batch.task_loss
        if batch.phase != PERSONAL:
            return loss_K
        strength: float = self.config.strength
        return loss_K + 0.5 * strength * squared_distance(batch)

    def pre_aggregate(self, update: Update) -> Payload:
        if update.phase != PERSONAL:
            return super().pre_aggregate(update)
        keep(update.kept, OWN, update.after)
        return Payload()

    def client_params(self, kept: Sequence[Tensors], params: Tensors, update: Update | None = None) -> Groups:
        return {"own": recall(kept, OWN, self.trained(params))}
