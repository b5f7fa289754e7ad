"""Every random stream of a run, each from (seed, purpose, round, client); the global generators are never used.

Streams are independent of each other and of the number of ranks, so nothing about randomness needs to be saved:
a resumed run asks for the same stream again.
"""

from __future__ import annotations  # so that what reads files alone starts without torch

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, purpose: str, *, round: int = 0, client: int = 0) -> int:
    """Return a 64-bit key of one stream."""
    text = f"{seed}/{purpose}/{round}/{client}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def numpy_stream(seed: int, purpose: str, *, round: int = 0, client: int = 0) -> np.random.Generator:
    """Return a numpy generator (Philox) for one purpose."""
    return np.random.Generator(np.random.Philox(derive(seed, purpose, round=round, client=client)))


def chance(seed: int, purpose: str, *, round: int = 0, client: int = 0) -> float:
    """Return a single uniform number, 0 <= x < 1, at a fraction of what a stream costs."""
    return (derive(seed, purpose, round=round, client=client) >> 11) * 2.0**-53


def torch_stream(seed: int, purpose: str) -> torch.Generator:
    """Return a torch generator on the CPU for one purpose, which must be one of few in a run.

    PyTorch keeps the lower 32 bits of a seed, so that among 100,000 streams two would be the same: what has a client
    or a round draws from a ``numpy_stream``.
    """
    import torch

    generator = torch.Generator()
    generator.manual_seed(derive(seed, purpose) >> 1)
    return generator
