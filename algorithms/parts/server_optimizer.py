"""What FedAdam and FedYogi share: the mean change of the clients is the gradient of an optimiser on the server."""

from abc import abstractmethod
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from fedsim.algorithms.base import PARAMS, Aggregate, Algorithm, ServerState, Tensors, add_exact

FIRST, SECOND = "first/", "second/"


class ServerOptimizer(Algorithm):
    """Reddi et al., Adaptive federated optimization, ICLR 2021, algorithm 2.

    The moments are float64, in the server's state; their start is not corrected for. Running statistics have none:
    they are averaged.
    """

    class Config(Algorithm.Config):
        lr: float = Field(0.01, gt=0, description="The server's learning rate; eta.")
        beta1: float = Field(0.9, ge=0, lt=1, description="Memory of the mean change.")
        beta2: float = Field(0.99, ge=0, lt=1, description="Memory of the squared change.")
        tau: float = Field(1e-3, gt=0, description="Added to the root of the second moment: smaller is more adaptive.")

    def init_server(self, params: Tensors) -> Tensors:
        moved = {n: v.double() for n, v in self.sent(params).items() if self.specs[n].kind != "buffer"}
        first = {FIRST + name: torch.zeros_like(value) for name, value in moved.items()}
        # The smallest start that the paper allows.
        second = {SECOND + name: torch.full_like(value, self.config.tau**2) for name, value in moved.items()}
        return first | second

    def post_aggregate(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        params, extra = dict(state.params), dict(state.extra)
        beta1: float = self.config.beta1
        for name, change in aggregate.mean[PARAMS].items():
            step = change
            if FIRST + name in extra:
                first = beta1 * extra[FIRST + name] + (1 - beta1) * change
                second = self.second_moment(extra[SECOND + name], change.square())
                extra |= {FIRST + name: first, SECOND + name: second}
                step = self.config.lr * first / (second.sqrt() + self.config.tau)
            params[name] = add_exact(params[name], step)
        return replace(state, params=params, extra=extra)

    @abstractmethod
    def second_moment(self, before: Tensor, squared: Tensor) -> Tensor:
        """Return the new second moment from the last one and the squared mean change."""
