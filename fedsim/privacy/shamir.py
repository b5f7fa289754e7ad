"""Shamir's secret sharing: any ``threshold`` of the shares give the secret, fewer tell nothing of it.

Shamir, How to share a secret, CACM 1979. The secret is the value at zero of a random polynomial of degree
``threshold`` - 1 over a prime field, and a share its value somewhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

SECRET_BYTES = 32
#: The smallest prime above all secrets.
PRIME = 2**256 + 297
SHARE_BYTES = 33
# What is drawn for a coefficient is this much longer than the prime, so that its remainder is uniform to 2^-120.
DRAWN_BYTES = 48


class Random(Protocol):
    """Where a polynomial's coefficients come from."""

    def bytes(self, length: int, /) -> bytes:
        """Return so many random bytes."""


@dataclass(frozen=True)
class Share:
    """The value ``y`` of the polynomial at ``x``, which is not zero."""

    x: int
    y: int


def split(secret: bytes, threshold: int, num_shares: int, random: Random) -> list[Share]:
    """Split a secret of ``SECRET_BYTES`` into shares at 1, 2, ... ``num_shares``."""
    assert len(secret) == SECRET_BYTES
    assert 1 <= threshold <= num_shares
    drawn = [int.from_bytes(random.bytes(DRAWN_BYTES)) % PRIME for _ in range(threshold - 1)]
    return [Share(x, value_at(x, [int.from_bytes(secret), *drawn])) for x in range(1, num_shares + 1)]


def value_at(x: int, coefficients: Sequence[int]) -> int:
    """Return a polynomial's value in the field, the constant coefficient first."""
    value = 0
    for coefficient in reversed(coefficients):
        # Places are small numbers: one remainder at the end is cheaper than one a step.
        value = value * x + coefficient
    return value % PRIME


def rebuild(shares: Sequence[Share], threshold: int) -> bytes:
    """Return the secret; ValueError where shares are too few, equal, outside the field or of no common polynomial.

    What ``threshold`` shares make cannot be checked; further ones must agree with them.
    """
    places = [share.x for share in shares]
    if len(shares) < threshold:
        raise ValueError(f"{len(shares)} shares of a secret that takes {threshold}")
    if len(set(places)) < len(places):
        raise ValueError(f"shares with the places {places}, of which some are the same")
    if not all(0 < share.x < PRIME and 0 <= share.y < PRIME for share in shares):
        raise ValueError("a share outside the field")
    # More than half of all are needed, so the first and the last together are everyone.
    first, last = (_value_at_zero(some) for some in (shares[:threshold], shares[-threshold:]))
    if first != last or first >= 2 ** (8 * SECRET_BYTES):
        raise ValueError("shares that lie on no common polynomial")
    return first.to_bytes(SECRET_BYTES)


def _value_at_zero(shares: Sequence[Share]) -> int:
    factors = _lagrange(tuple(share.x for share in shares))
    return sum(factor * share.y for factor, share in zip(factors, shares, strict=True)) % PRIME


@lru_cache(maxsize=8)
def _lagrange(places: tuple[int, ...]) -> list[int]:
    """What each place's value counts at zero; all secrets of a phase are rebuilt from the same few places."""
    factors = []
    for x in places:
        above, below = 1, 1
        for other in places:
            if other != x:
                above, below = above * other, below * (other - x)
        factors.append(above * pow(below, -1, PRIME) % PRIME)
    return factors
