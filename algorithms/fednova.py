"""FedNova: clients that take more steps do not pull harder."""

from typing import Any

from torch import Tensor

from fedsim.algorithms.base import PARAMS, Aggregate, Algorithm, Facts, Payload, ServerState, Update, beside
from fedsim.algorithms.parts.own_ranks import refuse_ranks
from fedsim.config.mistakes import KeyedError
from fedsim.config.train import TrainConfig

LENGTH, BEYOND = "length", "beyond a step"


class FedNova(Algorithm):
    """Wang et al., Tackling the objective inconsistency problem in heterogeneous federated optimization, NeurIPS 2020.

    Section 5: the mean of the clients' changes, each divided by the length ||a_i||_1 of its training, is multiplied by
    the mean length, so that clients of equal length are averaged as in FedAvg. The length of SGD's training is the
    number of steps without momentum, and as in section 4 with a momentum that begins anew in every round. For Adam and
    AdamW, which the paper leaves open, it is the number of steps. Running statistics are averaged as they are.
    """

    summary = "changes are averaged per local step (Wang et al., 2020)"
    assumes_true_sums = "the lengths of trainings travel beside the changes"

    class Config(Algorithm.Config):
        def check_training(self, train: TrainConfig) -> None:
            if train.keep_optimizer and train.momentum:
                found = "true with fednova and momentum, whose length of a training assumes that it begins anew"
                raise KeyedError("train.keep_optimizer", found, "false, or momentum: 0 with adam or adamw")

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        refuse_ranks(facts, "fednova")

    def pre_aggregate(self, update: Update) -> Payload:
        length_K = training_length(update.num_steps, update.momentum)
        change = self.sent(update.delta)
        for name, value in change.items():
            if self.specs[name].kind != "buffer":
                change[name] = value / beside(length_K, value)
        # What exceeds a single step: so weights that add up to one but for rounding leave single steps exact.
        return Payload(mean={PARAMS: change, LENGTH: {BEYOND: length_K - 1}})

    def post_aggregate(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        length = 1 + aggregate.mean[LENGTH][BEYOND]
        change = {
            name: value if self.specs[name].kind == "buffer" else length * value
            for name, value in aggregate.mean[PARAMS].items()
        }
        return super().post_aggregate(state, Aggregate(aggregate.clients, {PARAMS: change}))


def training_length(num_steps: Tensor, momentum: float) -> Tensor:
    """Return ||a||_1 float64 (K,): how often each gradient of a training counts in its change, added up.

    SGD with momentum rho counts the gradient of step k, of t, (1 - rho^(t - k + 1)) / (1 - rho) times.
    """
    steps = num_steps.double()
    if momentum == 0:
        return steps
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
