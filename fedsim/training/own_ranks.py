"""What clients are given of LoRA factors where they have ranks of their own.

A client of rank r has the first r rows of A and columns of B, and zeros for the rest, so that clients of all ranks
stand in one batch. Where both are zero both gradients are.

Shapes: K clients in a block, M models of a client, R = K M rows, client by client.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedsim.algorithms.base import Facts, Tensors
from fedsim.algorithms.parts.own_ranks import held, ranks_of, within
from fedsim.models.specs import FACTORS, RANK
from fedsim.training.flat import Layout


class OwnRanks:
    """The clients' ranks of a run; where all have the same, ``differ`` is false and nothing is done."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self.differ = facts.ranks is not None

    def given(self, clients: Sequence[int], params: Tensors, num_models: int = 1) -> dict[str, Tensor]:
        """Return all parameters, (R, ...) or (...), with (R, ...) factors of the clients' ranks in place of others.

        And with ``RANK`` (R,), by which their products are scaled: the clients' own, or a lower one in ``params``.
        """
        rank_K = ranks_of(self._facts, clients)
        if rank_K is None:
            return dict(params)
        rank_R = rank_K.repeat_interleave(num_models).to(params[RANK])
        rank_R = torch.minimum(rank_R, params[RANK])
        return {**within(params, self._facts.specs, rank_R), RANK: rank_R}

    def own(self, clients: Sequence[int], params: Tensors, num_models: int = 1) -> dict[str, Tensor]:
        """Return of what is ``given`` what has a client axis."""
        given, specs = self.given(clients, params, num_models), self._facts.specs
        return {name: value for name, value in given.items() if value.dim() > len(specs[name].shape)}

    def beyond(self, rank_R: Tensor, layout: Layout) -> Tensor:
        """Return where of what trains, bool (R, P), a model's rank does not reach."""
        found: Mapping[str, Tensor] = {
            name: ~held(self._facts.specs[name], rank_R).expand(-1, *shape)
            if self._facts.specs[name].kind in FACTORS
            else torch.zeros(len(rank_R), *shape, dtype=torch.bool, device=rank_R.device)
            for name, shape in layout.shapes.items()
        }
        return layout.pack(found)
