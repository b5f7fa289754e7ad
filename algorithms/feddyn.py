"""FedDyn: a dynamic regulariser makes the clients' optima agree with the server's."""

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from fedsim.algorithms import base
from fedsim.algorithms.parts.own_ranks import ranks_of, within

OWN, MOVED = "own gradient", "moved"


class FedDyn(base.Algorithm):
    """Acar et al., ICLR 2021, algorithm 1: steps use g + alpha (w - w_server) - g_i; g_i -= alpha (w_i - w_server).

    The server's h -= alpha sum(w_i - w_server) / N, a sum over those who trained; w becomes their mean - h / alpha.
    """

    summary = "a dynamic regulariser against client drift (Acar et al., 2021)"
    keeps = (OWN,)

    class Config(base.Algorithm.Config):
        alpha: float = Field(0.1, gt=0, description="Strength of the regulariser.")

    def init_server(self, params: base.Tensors) -> base.Tensors:
        return {name: value.double().new_zeros(value.shape) for name, value in self.with_gradient(params).items()}

    def begin(self, state: base.ServerState, phase: base.Phase, kept: Sequence[base.Tensors]) -> base.Start:
        zeros = {name: value.new_zeros(value.shape) for name, value in self.with_gradient(state.params).items()}
        return base.Start(context={OWN: base.recall(kept, OWN, zeros)})

    def gradient(self, params: base.Tensors, grad_of: base.GradOf, step: base.Step) -> base.Tensors:
        pull = {n: self.config.alpha * (params[n] - step.start[n]) - v for n, v in step.context[OWN].items()}
        return {n: grad + pull[n] if n in pull else grad for n, grad in grad_of(params).items()}

    def pre_aggregate(self, update: base.Update) -> base.Payload:
        # That a client lacks what the server has beyond its rank is no move.
        rank_K = ranks_of(self.facts, update.clients)
        own, moved = update.context[OWN], within(self.with_gradient(update.delta), self.specs, rank_K)
        base.keep(update.kept, OWN, {n: base.add_exact(own[n], -self.config.alpha * v) for n, v in moved.items()})
        return base.Payload(mean={base.PARAMS: self.sent(update.delta)}, total={MOVED: moved})

    def post_aggregate(self, state: base.ServerState, aggregate: base.Aggregate) -> base.ServerState:
        moved, alpha, count = aggregate.total[MOVED], self.config.alpha, self.facts.num_clients
        h = {n: value - alpha / count * moved[n] for n, value in state.extra.items()}
        change = {n: v - h.get(n, 0) / alpha for n, v in aggregate.mean[base.PARAMS].items()}
        after = super().post_aggregate(state, base.Aggregate(aggregate.clients, {base.PARAMS: change}))
        return replace(after, extra=h)
