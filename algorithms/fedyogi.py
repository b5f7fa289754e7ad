"""FedYogi: Yogi on the server, whose second moment grows and shrinks by steps of the change's own size."""

from torch import Tensor

from fedsim.algorithms.parts.server_optimizer import ServerOptimizer


class FedYogi(ServerOptimizer):
    """Reddi et al., Adaptive federated optimization, ICLR 2021, algorithm 2 (FedYogi)."""

    summary = "Yogi over the clients' mean change (Reddi et al., 2021)"

    def second_moment(self, before: Tensor, squared: Tensor) -> Tensor:
        beta2: float = self.config.beta2
        return before - (1 - beta2) * squared * (before - squared).sign()
