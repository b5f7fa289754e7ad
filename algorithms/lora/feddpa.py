"""FedDPA: a client trains its own pair of factors beside the frozen shared one, and the shared one without its own.

Shapes: K clients in a block; factors (K, ...).
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from fedsim.algorithms import base
from fedsim.algorithms.parts.two_levels import OWN, TwoLevels

LOCAL = base.Phase("local", frozenset({"lora_a", "lora_b"}))
#: The weight of a client's own pair, kept beside it: none before its first training.
WEIGHT = "weight"


class FedDPA(TwoLevels):
    """Yang et al., Dual-personalizing adapter for federated foundation models, NeurIPS 2024: FedDPA-T.

    A client uses (1 - a) B_g A_g + a B_k A_k. From the second round on it first trains its own pair in that sum with
    the server's frozen, then, as in FedAvg, the shared pair and the head without its own. This is the order of the
    published code, whose fixed weight a is used, too; the paper's other weight, from how close an input is to some of
    the client's own, would make a model of its own for each image and is not here. The paper's equations were not read.
    """

    summary = "a shared pair of LoRA factors and an own one, trained in turn and mixed (Yang et al., 2024)"
    remakes_factors = "mixes two pairs"

    class Config(TwoLevels.Config):
        local_weight: float = Field(0.5, gt=0, le=1, description="Weight a of a client's own pair; 1 - a: the shared.")

    def phases(self, round: int) -> tuple[base.Phase, ...]:
        return (base.Phase(),) if round == 1 else (LOCAL, base.Phase())

    def begin(self, state: base.ServerState, phase: base.Phase, kept: Sequence[base.Tensors]) -> base.Start:
        return super().begin(state, phase, kept) if phase == LOCAL else base.Start()

    def gradient(self, params: base.Tensors, grad_of: base.GradOf, step: base.Step) -> base.Tensors:
        if step.phase != LOCAL:
            # The server's B of the own ranks is zero: they are not there, and stay so.
            grads = grad_of(params)
            return {**grads, **self.joined(grads, {n: v.new_zeros(v.shape) for n, v in self.local(grads).items()})}
        own, weight = self.local(params), self.config.local_weight
        # What lies in the first ranks is not used: the server's are, whatever weight decay does.
        grads = grad_of(self.mixed(step.start, own, torch.full((len(step.targets),), weight)))
        into = {n: v * weight if self.axes[n] == -1 else v for n, v in self.local(grads).items()}
        return self.joined({n: v.new_zeros(v.shape) for n, v in grads.items()}, into)

    def pre_aggregate(self, update: base.Update) -> base.Payload:
        if update.phase != LOCAL:
            return base.Payload(mean={base.PARAMS: self.shared(self.sent(update.delta))})
        weight_K = torch.full((len(update.clients),), self.config.local_weight)
        base.keep(update.kept, OWN, {**self.local(update.after), WEIGHT: weight_K})
        return base.Payload()

    def client_params(
        self, kept: Sequence[base.Tensors], params: base.Tensors, update: base.Update | None = None
    ) -> base.Groups:
        trained = {} if update is None else update.after
        own = base.recall(kept, OWN, {**self.local(params), WEIGHT: torch.zeros(())})
        return {"own": {**trained, **self.mixed({**params, **trained}, own, own.pop(WEIGHT))}}

    def mixed(self, shared: base.Tensors, own: base.Tensors, weight_K: Tensor) -> dict[str, Tensor]:
        """Return the factors (K, ...) of (1 - a) B_g A_g + a B_k A_k, the weights ``weight_K`` in B."""
        first, last = dict(shared), dict(own)
        for name in (name for name, axis in self.axes.items() if axis == -1):
            first[name] = shared[name] * base.beside(1 - weight_K, own[name])
            last[name] = own[name] * base.beside(weight_K, own[name])
        return self.joined(first, last)
