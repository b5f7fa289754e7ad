"""FedProx: FedAvg with a pull towards the server's model."""

from pydantic import Field
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Batch, squared_distance


class FedProx(Algorithm):
    """Li et al., MLSys 2020, equation 2: local loss + mu / 2 * ||w - w_server||^2 over what trains."""

    summary = "a proximal term keeps clients near the server (Li et al., 2020)"

    class Config(Algorithm.Config):
        mu: float = Field(0.01, ge=0, description="Strength of the proximal term; 0 is FedAvg.")

    def loss(self, batch: Batch) -> Tensor:
        loss_K = batch.task_loss
        if self.config.mu == 0:
            return loss_K
        mu: float = self.config.mu
        return loss_K + 0.5 * mu * squared_distance(batch)
