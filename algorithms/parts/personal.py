"""What the methods share in which clients keep a part of their parameters to themselves."""

from collections.abc import Sequence

from torch import Tensor

from fedsim.algorithms.base import Algorithm, Groups, Payload, Phase, ServerState, Start, Tensors, Update, keep, recall
from fedsim.models.specs import Kind

OWN = "own"


class Personal(Algorithm):
    """FedAvg but for parameters of ``kept_kinds``: a client trains these from its own last values and sends none.

    A client that takes part for the first time starts from the server's, which nobody trains: the initial ones.
    """

    keeps = (OWN,)
    kept_kinds: frozenset[Kind]

    def sent(self, tensors: Tensors) -> dict[str, Tensor]:
        kept = self._own(tensors)
        return {name: value for name, value in super().sent(tensors).items() if name not in kept}

    def begin(self, state: ServerState, phase: Phase, kept: Sequence[Tensors]) -> Start:
        return Start(recall(kept, OWN, self._own(state.params)))

    def pre_aggregate(self, update: Update) -> Payload:
        keep(update.kept, OWN, self._own(update.after))
        return super().pre_aggregate(update)

    def client_params(self, kept: Sequence[Tensors], params: Tensors, update: Update | None = None) -> Groups:
        own = recall(kept, OWN, self._own(params))
        return {"own": own if update is None else {**own, **update.after}}

    def _own(self, tensors: Tensors) -> dict[str, Tensor]:
        return {name: value for name, value in tensors.items() if self.specs[name].kind in self.kept_kinds}
