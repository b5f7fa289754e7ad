"""FedAdam: Adam on the server."""

from torch import Tensor

from fedsim.algorithms.parts.server_optimizer import ServerOptimizer


class FedAdam(ServerOptimizer):
    """Reddi et al., Adaptive federated optimization, ICLR 2021, algorithm 2 (FedAdam)."""

    summary = "Adam over the clients' mean change (Reddi et al., 2021)"

    def second_moment(self, before: Tensor, squared: Tensor) -> Tensor:
        beta2: float = self.config.beta2
        return beta2 * before + (1 - beta2) * squared
