"""FedSA-LoRA: clients share the LoRA factors A, and each keeps factors B of its own."""

from typing import Any, Literal

from pydantic import Field

from fedsim.algorithms.base import Algorithm, Facts
from fedsim.algorithms.parts.factors import factor_pairs
from fedsim.algorithms.parts.personal import Personal
from fedsim.errors import UserError
from fedsim.models.specs import Kind

KEPT: frozenset[Kind] = frozenset({"lora_b"})


class FedSALoRA(Personal):
    """Guo et al., Selective aggregation for low-rank adaptation in federated learning, ICLR 2025, figure 1.

    Both factors train together. A is averaged; B stays with the client, which goes on from its own. A client that takes
    part for the first time starts from the current A and the initial B, zero: from the model without adapters.

    ``released``: as in the published settings for classification (``local_param`` in their GLUE config), the classifier
    stays with the client, too.
    """

    summary = "A shared and averaged, B stays with the client (Guo et al., 2025)"
    kept_kinds = KEPT

    class Config(Algorithm.Config):
        form: Literal["paper", "released"] = Field(
            "paper", description="What stays with the client: B; released: the classifier, too."
        )

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        factor_pairs(self.specs, "fedsa_lora")
        if config.form == "released":
            if all(spec.kind != "head" for spec in self.specs.values()):
                raise UserError("algorithm.form", "released on a model whose classifier does not train", "paper")
            self.kept_kinds = KEPT | {"head"}
