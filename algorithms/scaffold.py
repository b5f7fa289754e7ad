"""SCAFFOLD: control variates take the drift of unequal clients out of every local step."""

from collections.abc import Sequence
from dataclasses import replace

from fedsim.algorithms import base
from fedsim.algorithms.parts.own_ranks import ranks_of, within

SERVER, OWN = "server control", "own control"


class Scaffold(base.Algorithm):
    """Karimireddy et al., SCAFFOLD: Stochastic controlled averaging for federated learning, ICML 2020, algorithm 1.

    Option II, global step size 1. Steps use g - c_i + c; then c_i becomes c_i - c + (x - y_i) / (steps lr), and c moves
    by the sum of the clients' changes over the number of all clients.
    """

    summary = "control variates against client drift (Karimireddy et al., 2020)"
    keeps = (OWN,)

    class Config(base.Algorithm.Config):
        def check_training(self, train: base.TrainConfig) -> None:
            if (train.optimizer, train.momentum) != ("sgd", 0):
                raise base.KeyedError("train", f"{train.optimizer}, momentum {train.momentum:g}", "sgd, momentum 0")

    def init_server(self, params: base.Tensors) -> base.Tensors:
        return {name: value.new_zeros(value.shape) for name, value in self.with_gradient(params).items()}

    def begin(self, state: base.ServerState, phase: base.Phase, kept: Sequence[base.Tensors]) -> base.Start:
        own = base.recall(kept, OWN, self.init_server(state.params))
        return base.Start(context={SERVER: {n: state.extra[n].expand_as(v) for n, v in own.items()}, OWN: own})

    def gradient(self, params: base.Tensors, grad_of: base.GradOf, step: base.Step) -> base.Tensors:
        server, own = step.context[SERVER], step.context[OWN]
        return {n: grad + server[n] - own[n] if n in own else grad for n, grad in grad_of(params).items()}

    def pre_aggregate(self, update: base.Update) -> base.Payload:
        server, own, length = update.context[SERVER], update.context[OWN], update.num_steps.double() * update.lr
        change = {n: -server[n].double() - update.delta[n] / base.beside(length, update.delta[n]) for n in own}
        # That a client lacks what the server has beyond its rank is no gradient.
        change = within(change, self.specs, ranks_of(self.facts, update.clients))
        base.keep(update.kept, OWN, {n: base.add_exact(own[n], value) for n, value in change.items()})
        return base.Payload(mean={base.PARAMS: self.sent(update.delta)}, total={SERVER: change})

    def post_aggregate(self, state: base.ServerState, aggregate: base.Aggregate) -> base.ServerState:
        params, change = super().post_aggregate(state, aggregate).params, aggregate.total[SERVER]
        moved = {n: base.add_exact(v, change[n] / self.facts.num_clients) for n, v in state.extra.items()}
        return replace(state, params=params, extra=moved)
