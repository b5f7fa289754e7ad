"""What a trained parameter is, in words that methods may use without loading any model library."""

from dataclasses import dataclass
from typing import Literal

# What a parameter is to a method. "norm": scale and shift of a BatchNorm layer; "buffer": running statistics,
# averaged but never differentiated.
# "local": trained by a client from the server's value and never sent.
Kind = Literal["lora_a", "lora_b", "head", "body", "norm", "buffer", "local"]

# The buffers of model.amplitude_norm: the clients' target, and whether it is shared and stays.
AMPLITUDE, AMPLITUDE_IS_FIXED = "amplitude_norm.amplitude", "amplitude_norm.is_fixed"


@dataclass(frozen=True)
class ParamSpec:
    """Shape without the client axis, and role, of one parameter."""

    shape: tuple[int, ...]
    kind: Kind
