"""A layer's two LoRA factors belong together: their names, found by kind and by the stem that they share.

Shapes: G slices of a layer, R rank, D input width, O output width of a slice; A (G, R, D) and B (G, O, R).
"""

from collections.abc import Mapping

from fedsim.errors import UserError
from fedsim.models.specs import ParamSpec

Pairs = tuple[tuple[str, str], ...]


def factor_pairs(specs: Mapping[str, ParamSpec], method: str) -> Pairs:
    """Return the names of A and B of every layer that has LoRA; UserError where none has, naming the ``method``."""
    stems = [name.removesuffix("lora_a") for name, spec in specs.items() if spec.kind == "lora_a"]
    if not stems:
        raise UserError("model.lora", f"null with algorithm.name: {method}", "a section, {} for its defaults")
    return tuple((f"{stem}lora_a", f"{stem}lora_b") for stem in stems)
