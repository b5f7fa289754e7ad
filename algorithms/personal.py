"""What the methods share in which clients keep a part of their parameters to themselves."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from algorithms.base import Algorithm, Payload, Phase, ServerState, Update, keep, recall
from fedsim.models.specs import Kind

OWN = "own/"


class Personal(Algorithm):
    """FedAvg but for parameters of ``kept_kinds``: a client trains these from its own last values and sends none.

    A client that takes part for the first time starts from the server's, which nobody trains: the initial ones.
    """

    keeps_client_state = True
    kept_kinds: ClassVar[frozenset[Kind]]

    def sent(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kept = self._kept(tensors)
        return {name: value for name, value in super().sent(tensors).items() if name not in kept}

    def begin(self, state: ServerState, phase: Phase, states: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        del phase
        return recall(states, OWN, self._kept(state.params))

    def pre_aggregate(self, update: Update) -> Payload:
        keep(update.states, OWN, self._kept(update.after))
        return super().pre_aggregate(update)

    def client_model(
        self, states: Sequence[Mapping[str, Tensor]], params: Mapping[str, Tensor], update: Update | None = None
    ) -> Mapping[str, Tensor]:
        own = recall(states, OWN, self._kept(params))
        return own if update is None else {**own, **update.after}

    def stand_in(self, states: Sequence[Mapping[str, Tensor]], params: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return recall(states, OWN, self._kept(params))

    def _kept(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in tensors.items() if self.specs[name].kind in self.kept_kinds}
