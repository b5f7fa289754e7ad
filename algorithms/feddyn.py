"""FedDyn: a dynamic regulariser makes the clients' optima agree with the server's."""

from collections.abc import Sequence

from pydantic import Field

from fedsim.algorithms import base
from fedsim.algorithms.base import PARAMS, Aggregate, Payload, ServerState, Start, Tensors, Update

OWN, MOVED = "own gradient", "moved"


class FedDyn(base.Algorithm):
    """Acar et al., Federated learning based on dynamic regularization, ICLR 2021, algorithm 1.

    Steps use g + alpha (w - w_server) - g_i; then g_i falls by alpha (w_i - w_server). The server's h falls by alpha
    times the sum of these changes over the number of all clients; w becomes the clients' mean minus h / alpha.
    """

    summary = "a dynamic regulariser against client drift (Acar et al., 2021)"
    keeps = (OWN,)

    class Config(base.Algorithm.Config):
        alpha: float = Field(0.1, gt=0, description="Strength of the regulariser.")

    def init_server(self, params: Tensors) -> Tensors:
        return {name: value.double().new_zeros(value.shape) for name, value in self.with_gradient(params).items()}

    def begin(self, state: ServerState, phase: base.Phase, kept: Sequence[Tensors]) -> Start:
        zeros = {name: value.new_zeros(value.shape) for name, value in self.with_gradient(state.params).items()}
        return Start(context={OWN: base.recall(kept, OWN, zeros)})

    def gradient(self, params: Tensors, grad_of: base.GradOf, step: base.Step) -> Tensors:
        own, alpha = step.context[OWN], self.config.alpha
        pull = {name: alpha * (params[name] - step.start[name]) - value for name, value in own.items()}
        return {name: grad + pull.get(name, 0) for name, grad in grad_of(params).items()}

    def pre_aggregate(self, update: Update) -> Payload:
        own, moved = update.context[OWN], self.with_gradient(update.delta)
        base.keep(update.kept, OWN, {n: base.add_exact(own[n], -self.config.alpha * v) for n, v in moved.items()})
        return Payload(mean={PARAMS: self.sent(update.delta)}, total={MOVED: moved})

    def post_aggregate(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        per_client = self.config.alpha / self.facts.num_clients
        h = {name: value - per_client * aggregate.total[MOVED][name] for name, value in state.extra.items()}
        change = {n: v - h.get(n, 0) / self.config.alpha for n, v in aggregate.mean[PARAMS].items()}
        after = super().post_aggregate(state, Aggregate(aggregate.clients, {PARAMS: change}))
        return ServerState(state.round, after.params, h)
