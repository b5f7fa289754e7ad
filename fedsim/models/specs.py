"""What a trained parameter is, in words that methods may use without loading any model library."""

from dataclasses import dataclass
from typing import Literal

# What a parameter is to a method. "magnitude": of DoRA, one for each output. "norm": scale and shift of a BatchNorm
# layer; "buffer": running statistics, averaged but never differentiated.
# "local": trained by a client from the server's value and never sent. "proxy": of a sub-model's cut feed-forward,
# given to clients, which neither train nor send it. "count": how often something happened in a training, int64.
# "shift": what the server has added to the frozen weights of an adapted layer, in units of B A; clients are given it.
# "rank": ``RANK``.
Kind = Literal[
    "lora_a", "lora_b", "magnitude", "head", "body", "norm", "buffer", "local", "proxy", "count", "shift", "rank"
]
FACTORS: tuple[Kind, Kind] = ("lora_a", "lora_b")

# How the names of an adapted layer's parameters end, behind its path: factors (G, R, D) and (G, O, R), DoRA's magnitude
# (G, O), and where the server changes the frozen weights, what it has added to them, (G, O, D).
A, B, MAGNITUDE, SHIFT = ".lora_a", ".lora_b", ".lora_magnitude", ".shift"

# How many rows of A and columns of B there are, float32 (), where clients differ in that; nobody trains it. The others
# are zero.
RANK = "lora_rank"

# The buffers of model.amplitude_norm: the clients' target, and whether it is shared and stays.
AMPLITUDE, AMPLITUDE_IS_FIXED = "amplitude_norm.amplitude", "amplitude_norm.is_fixed"

# What a sub-model adds: the cut feed-forwards' tensors, PROXIES + LAYER.PATH, and over a training's forward passes how
# often each neuron's activation was zero, ZEROS + LAYER, int64 (R,), of how many tokens, int64 ().
PROXIES, ZEROS, NUM_TOKENS = "submodel.blocks.", "zeros.", "num_tokens"


@dataclass(frozen=True)
class ParamSpec:
    """Shape without the client axis, and role, of one parameter.

    ``neuron_axis``: the axis along which a "proxy" has one entry for each neuron of its feed-forward, if it has one.
    """

    shape: tuple[int, ...]
    kind: Kind
    neuron_axis: int | None = None
