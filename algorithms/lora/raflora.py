"""raFLoRA: every rank of the factors is averaged over the clients that have it.

Shapes: K clients in a block, R the largest rank.
"""

from dataclasses import replace
from typing import Any

import torch

from fedsim.algorithms.base import PARAMS, Aggregate, Algorithm, Facts, Payload, ServerState, Update
from fedsim.algorithms.parts.own_ranks import held, ranks_of, require_ranks, within
from fedsim.models.specs import FACTORS

LACKING = "lacking"


class RaFLoRA(Algorithm):
    """Wu et al., Preventing rank collapse in federated low-rank adaptation with client heterogeneity, arXiv 2602.13486.

    Row j of A, and column j of B, become sum p_k A_k[j] / sum p_k, both sums over the clients with a rank above j: by
    zero padding what few clients have would shrink by every round. What nobody of a round has stays. Only the abstract
    could be read, by which the paper partitions updates by rank before it divides them anew by an SVD; the rule for
    the factors themselves is also that of Chen et al., RBLA, arXiv 2408.08699.
    """

    summary = "every rank averaged over those that have it (Wu et al., 2026)"
    assumes_true_sums = "it divides by the share of the clients that have a rank"

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        self.ranks = require_ranks(facts, "raflora")

    def pre_aggregate(self, update: Update) -> Payload:
        rank_K = ranks_of(self.facts, update.clients)
        assert rank_K is not None, "there are ranks"
        change = within(self.sent(update.delta), self.specs, rank_K)
        # What is lacking, not what is there: so weights that add up to one but for rounding leave a full rank exact.
        lacking_KR = (torch.arange(max(self.ranks)) >= rank_K[:, None]).double()
        return Payload(mean={PARAMS: change, LACKING: {"share": lacking_KR}})

    def post_aggregate(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        share_R = 1 - aggregate.mean[LACKING]["share"]
        most = torch.tensor([max((self.ranks[client] for client in aggregate.clients), default=0)])
        change = dict(aggregate.mean[PARAMS])
        for name, value in change.items():
            if self.specs[name].kind in FACTORS:
                own = share_R[:, None] if self.specs[name].kind == "lora_a" else share_R
                change[name] = torch.where(held(self.specs[name], most.to(value.device))[0], value / own, 0.0)
        return super().post_aggregate(state, replace(aggregate, mean={PARAMS: change}))
