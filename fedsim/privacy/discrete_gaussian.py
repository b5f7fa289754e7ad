"""Exact draws of a discrete Gaussian, and the lattice that it lives on.

Noise in floating point is not the Gaussian that the accounting is about: its gaps tell what it was added to (Mironov,
CCS 2012). So updates are rounded to whole multiples of a step, and the noise is a whole number of the same steps.

Shapes: N draws.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import UserError

# The noise's deviation counts this many steps or more, less than twice as many.
STEPS = 2**26
# A draw is decided in float64 unless it is nearer to its threshold than this; exp and log err by far less.
MARGIN = 1e-13
# Bits that a draw gets beyond float64's 53 where these do not decide, and decimal digits to compare with.
MORE_BITS = 160
DIGITS = 90


@dataclass(frozen=True)
class Lattice:
    """Multiples of ``step``, a power of two, with room for noise of a deviation of ``deviation`` steps."""

    step: float
    deviation: int

    @classmethod
    def for_noise(cls, sigma: float) -> "Lattice":
        """Return the lattice for noise of at least this standard deviation, and of at most 2^-26 more."""
        step = 2.0 ** (math.floor(math.log2(sigma)) - math.log2(STEPS))
        return cls(step, math.ceil(sigma / step))

    def round(self, values: Tensor) -> Tensor:
        """Return float64 values as whole numbers of steps, int64; UserError beyond what float64 counts."""
        # Division by a power of two is exact.
        steps = (values / self.step).round_()
        if steps.numel() and not bool(steps.abs().amax() < 2.0**52):
            found = f"a change of {values.abs().max().item():g} beside noise of {self.deviation * self.step:g}"
            raise UserError("privacy.noise_multiplier", found, "more noise, or a smaller bound")
        return steps.to(torch.int64)

    def noise(self, stream: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
        """Draw noise, int64 of that shape, in steps."""
        return torch.from_numpy(draw(stream, self.deviation, math.prod(shape)).reshape(shape))


def draw(stream: np.random.Generator, sigma: int, count: int) -> np.ndarray:
    """Return (N,) int64 with P(k) proportional to exp(-k^2 / (2 sigma^2)), exactly, for 0 < sigma < 2^28.

    Canonne, Kamath and Steinke, The discrete Gaussian for differential privacy, NeurIPS 2020, algorithm 3 with t =
    sigma: a discrete Laplace draw x is kept with probability exp(-(|x| - sigma)^2 / (2 sigma^2)). In place of their
    coins the few draws that float64 does not decide are drawn to more digits.
    """
    assert 0 < sigma < 2**28
    found: list[np.ndarray] = []
    missing = count
    while missing > 0:
        # Some 0.76 of the candidates are kept.
        size = missing * 4 // 3 + 16
        magnitude = _exponential(stream, sigma, size)
        negative = stream.integers(0, 2, size, dtype=np.int8).astype(bool)
        kept = _bernoulli_exp(stream, magnitude, sigma) & ~(negative & (magnitude == 0))
        values = np.where(negative, -magnitude, magnitude)[kept][:missing]
        found.append(values)
        missing -= len(values)
    return np.concatenate([np.zeros(0, np.int64), *found])


def _exponential(stream: np.random.Generator, sigma: int, size: int) -> np.ndarray:
    """Return floor(-sigma ln u) of uniform u, int64 (N,): P(x >= k) = exp(-k / sigma)."""
    u = stream.random(size)
    # All of u that is known is that it lies between u and u + 2^-53.
    values, spread = -sigma * np.log(u + 2.0**-54), sigma * (2.0**-53 / (u + 2.0**-54) + MARGIN)
    whole = np.floor(values - spread)
    for place in np.flatnonzero(whole != np.floor(values + spread)):
        whole[place] = _decided(stream, float(u[place]), lambda exact: math.floor(-sigma * exact.ln()))
    return whole.astype(np.int64)


def _bernoulli_exp(stream: np.random.Generator, x: np.ndarray, sigma: int) -> np.ndarray:
    """Return N coins of probability exp(-(x - sigma)^2 / (2 sigma^2))."""
    u = stream.random(len(x))
    odds = np.exp(-0.5 * ((x - sigma) / sigma) ** 2)
    heads = u < odds
    for place in np.flatnonzero(np.abs(u - odds) < MARGIN):
        exponent = Decimal(-((int(x[place]) - sigma) ** 2)) / (2 * sigma**2)
        heads[place] = _decided(stream, float(u[place]), partial(_is_below_exp, exponent))
    return heads


def _is_below_exp(exponent: Decimal, number: Decimal) -> bool:
    return number < exponent.exp()


def _decided(stream: np.random.Generator, u: float, decide: Callable[[Decimal], int]) -> int:
    """Return what a uniform number decides of which the first 53 bits are known, drawing as many more as it takes."""
    bits, number = 53, int(u * 2**53)
    with localcontext() as context:
        while True:
            bits += MORE_BITS
            number = (number << MORE_BITS) | int.from_bytes(stream.bytes(MORE_BITS // 8), "little")
            context.prec = DIGITS * (bits // MORE_BITS + 1)
            low, high = (decide((Decimal(number + end) / 2**bits) or Decimal(2) ** -(bits + 64)) for end in (0, 1))
            if low == high:
                return int(low)
