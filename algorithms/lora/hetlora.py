"""HetLoRA: zero-padded factors of unequal ranks, weighted by the size of their products; clients give up ranks.

Shapes: K clients in a block, G slices of a layer, R the largest rank, D input width, O width of a slice.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from fedsim.algorithms import base
from fedsim.algorithms.parts.own_ranks import product_norm, require_ranks, tail_norm, within
from fedsim.models.specs import FACTORS, RANK

OWN, WEIGHTED, NORM = "own", "weighted", "norm"


class HetLoRA(base.Algorithm):
    """Cho et al., Heterogeneous LoRA for federated fine-tuning of on-device foundation models, EMNLP 2024.

    The server's factors are the mean of the clients', padded with zeros, weighted by ||S_k|| / sum ||S_k||, S_k all
    B_k A_k of a client (figure 2); all else is averaged as in FedAvg. Of a rank r the last r - floor(gamma r) may go:
    ``strength`` times the sum of ||B_tail|| ||A_tail|| is added to the loss, and where training has made that sum
    smaller than it was given, a client goes on with floor(gamma r), one at least. When a client prunes, and both
    numbers, are ours: the paper could not be read. Bytes are counted at the rank of ``model.lora.ranks``.
    """

    summary = "ranks by client, weighted by ||B A||, and pruned (Cho et al., 2024)"
    assumes_true_sums = "it divides by a sum of norms"
    keeps = (OWN,)

    class Config(base.Algorithm.Config):
        gamma: float = Field(0.99, gt=0, le=1, description="Share of the ranks that pruning leaves; 1: no pruning.")
        strength: float = Field(
            ge=0,
            default_factory=lambda seen: 1e-3 * (seen.get("gamma") != 1),
            description="Of the penalty on these ranks.",
        )

        def check_training(self, train: base.TrainConfig) -> None:
            if self.gamma == 1 and self.strength:
                raise base.KeyedError("algorithm.strength", f"{self.strength:g} with gamma: 1", "0: nothing is pruned")

    def __init__(self, config: Any, facts: base.Facts) -> None:
        super().__init__(config, facts)
        self.ranks = require_ranks(facts, "hetlora")

    def begin(self, state: base.ServerState, phase: base.Phase, kept: Sequence[base.Tensors]) -> base.Start:
        return base.Start(base.recall(kept, OWN, {RANK: state.params[RANK]}))

    def loss(self, batch: base.Batch) -> Tensor:
        if not self.config.strength:
            return batch.task_loss
        strength: float = self.config.strength
        return batch.task_loss + strength * self._tails(batch.params, batch.params[RANK])

    def pre_aggregate(self, update: base.Update) -> base.Payload:
        pairs = zip(update.clients, update.kept, strict=True)
        given_K = torch.tensor([float(own.get(f"{OWN}/{RANK}", self.ranks[client])) for client, own in pairs])
        before, after = (self._tails(tensors, given_K) for tensors in (update.before, update.after))
        rank_K = torch.where((after < before).cpu(), self._fewer(given_K), given_K)
        base.keep(update.kept, OWN, {RANK: rank_K})
        pruned = replace(update, after=within(update.after, self.specs, rank_K))
        norm_K, change = product_norm(pruned.after), self.sent(pruned.delta)
        factors = {n: v * base.beside(norm_K, v) for n, v in change.items() if self.specs[n].kind in FACTORS}
        others = {name: value for name, value in change.items() if name not in factors}
        return base.Payload(mean={base.PARAMS: others}, total={WEIGHTED: factors, NORM: {"sum": norm_K}})

    def post_aggregate(self, state: base.ServerState, aggregate: base.Aggregate) -> base.ServerState:
        norm = aggregate.total[NORM]["sum"].clamp(min=torch.finfo(torch.float64).tiny)
        change = {name: value / norm for name, value in aggregate.total[WEIGHTED].items()}
        mean = {base.PARAMS: {**aggregate.mean[base.PARAMS], **change}}
        return super().post_aggregate(state, replace(aggregate, mean=mean))

    def _fewer(self, rank_K: Tensor) -> Tensor:
        gamma: float = self.config.gamma
        return (gamma * rank_K).floor().clamp(min=1)

    def _tails(self, tensors: base.Tensors, rank_K: Tensor) -> Tensor:
        return tail_norm(tensors, self._fewer(rank_K), rank_K)
