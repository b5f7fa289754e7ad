"""FedRep: a common representation under heads of the clients' own."""

from typing import Any

from fedsim.algorithms.base import TRAINED_KINDS, Facts, Phase
from fedsim.algorithms.parts.personal import Personal
from fedsim.errors import UserError
from fedsim.models.specs import Kind

HEAD: frozenset[Kind] = frozenset({"head"})


class FedRep(Personal):
    """Collins et al., Exploiting shared representations for personalized federated learning, ICML 2021, algorithm 1.

    A round trains each client's head on the frozen representation, then the representation under the frozen head;
    only the representation is averaged. Both trainings are as long as ``train`` says.
    """

    summary = "own heads on a common representation (Collins et al., 2021)"
    kept_kinds = HEAD

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        kinds = {spec.kind for spec in self.specs.values()}
        if not (kinds & HEAD and kinds - HEAD - {"buffer"}):
            raise UserError("algorithm.name", f"fedrep on a model that trains {sorted(kinds)}", "a head and a body")

    def phases(self, round: int) -> tuple[Phase, ...]:
        return (Phase("head", HEAD), Phase("body", TRAINED_KINDS - HEAD))
