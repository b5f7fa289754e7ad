"""Two pairs of LoRA factors in every layer: one that all clients share, and one of each client's own.

They lie in one pair: the first ranks are shared and the last ``local_rank`` are the client's, since
[B_g B_l] [A_g; A_l] = B_g A_g + B_l A_l. Both are scaled by lora_alpha / r, where r, ``model.lora.r``, is their sum.

Shapes: K clients in a block, G slices of a layer, R = R_g + R_l ranks, D input width, O output width of a slice.
Factors have the shapes (K, G, R, D) and (K, G, O, R), the server's have no client axis.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from fedsim.algorithms.base import (
    PARAMS,
    Aggregate,
    Algorithm,
    Facts,
    Groups,
    Payload,
    Phase,
    ServerState,
    Start,
    Tensors,
    Update,
    keep,
    recall,
)
from fedsim.algorithms.parts.own_ranks import refuse_ranks
from fedsim.errors import UserError

OWN = "own pair"


class TwoLevels(Algorithm):
    """FedAvg but for the ranks that a client keeps: these it trains from its own last values, and sends none.

    The server never changes the client's part of its factors: A as it was drawn, which every client begins with, and B
    zero. So the server's model is the shared pair alone.
    """

    keeps = (OWN,)

    class Config(Algorithm.Config):
        local_rank: int = Field(2, ge=1, description="Ranks, of those in model.lora.r, that are each client's own.")

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        #: The axis of each factor along which its ranks lie.
        self.axes = {
            n: -2 if s.kind == "lora_a" else -1 for n, s in self.specs.items() if s.kind in ("lora_a", "lora_b")
        }
        ranks = {self.specs[name].shape[axis] for name, axis in self.axes.items()}
        if not ranks:
            raise UserError("model.lora", "null with a method of two pairs", "a section, {} for its defaults")
        refuse_ranks(facts, type(self).__name__)
        if config.local_rank >= min(ranks):
            expected = f"less than model.lora.r, {min(ranks)}: the others are what clients share"
            raise UserError("algorithm.local_rank", str(config.local_rank), expected)

    def begin(self, state: ServerState, phase: Phase, kept: Sequence[Tensors]) -> Start:
        return Start(self.joined(state.params, recall(kept, OWN, self.local(state.params))))

    def pre_aggregate(self, update: Update) -> Payload:
        keep(update.kept, OWN, self.local(update.after))
        return Payload(mean={PARAMS: self.shared(self.sent(update.delta))})

    def post_aggregate(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        change = dict(aggregate.mean.get(PARAMS, {}))
        for name in self.axes.keys() & change.keys():
            whole = torch.zeros_like(state.params[name], dtype=torch.float64)
            self._ranks(whole, name, shared=True).copy_(change[name])
            change[name] = whole
        return super().post_aggregate(state, replace(aggregate, mean={**aggregate.mean, PARAMS: change}))

    def client_params(self, kept: Sequence[Tensors], params: Tensors, update: Update | None = None) -> Groups:
        if update is not None:
            return {"own": update.after}
        return {"own": self.joined(params, recall(kept, OWN, self.local(params)))}

    def told(self, params: Tensors) -> dict[str, Tensor]:
        return self.shared(super().told(params))

    def shared(self, tensors: Tensors) -> dict[str, Tensor]:
        """Return tensors, of the factors among them the ranks that all clients share."""
        return {n: self._ranks(v, n, shared=True) if n in self.axes else v for n, v in tensors.items()}

    def local(self, tensors: Tensors) -> dict[str, Tensor]:
        """Return a client's own ranks of the factors among the tensors."""
        return {n: self._ranks(v, n, shared=False) for n, v in tensors.items() if n in self.axes}

    def joined(self, shared: Tensors, local_K: Tensors) -> dict[str, Tensor]:
        """Return factors (K, ...) with the first ranks of ``shared``'s, and then a client's own, ``local_K``.

        ``shared``: whole factors, with a client axis or without.
        """
        found = {}
        for name, own in local_K.items():
            first = self._ranks(shared[name], name, shared=True)
            found[name] = torch.cat([first.expand(len(own), *first.shape[-3:]), own], self.axes[name])
        return found

    def _ranks(self, factor: Tensor, name: str, *, shared: bool) -> Tensor:
        axis = self.axes[name]
        num_shared = factor.shape[axis] - self.config.local_rank
        return factor.narrow(axis, 0, num_shared) if shared else factor.narrow(axis, num_shared, self.config.local_rank)
