"""Shamir's sharing against numbers worked out by hand, and shares that must be refused."""

from itertools import combinations, count

import numpy as np
import pytest

from fedsim.privacy.shamir import DRAWN_BYTES, PRIME, SECRET_BYTES, Share, rebuild, split, value_at

SECRET = bytes(range(SECRET_BYTES))


class Given:
    """Draws that a test gives."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = iter(numbers)

    def bytes(self, length: int, /) -> bytes:
        return next(self._numbers).to_bytes(length, "big")


def shares_of(threshold: int, number: int) -> list[Share]:
    return split(SECRET, threshold, number, np.random.default_rng(0))


def test_by_hand() -> None:
    """7 + 3 x + 2 x^2: 12, 21, 34, 51. Over the field 5 - x is -1 at 6."""
    seven = (7).to_bytes(SECRET_BYTES, "big")
    found = split(seven, 3, 4, Given(3, 2))
    assert [(share.x, share.y) for share in found] == [(1, 12), (2, 21), (3, 34), (4, 51)]
    assert rebuild([Share(1, 12), Share(3, 34), Share(4, 51)], 3) == seven
    assert value_at(6, [5, PRIME - 1]) == PRIME - 1
    # The line through (1, 4) and (6, -1) meets zero at 5.
    assert rebuild([Share(1, 4), Share(6, PRIME - 1)], 2) == (5).to_bytes(SECRET_BYTES, "big")


def test_the_prime_is_one_and_all_secrets_are_below_it() -> None:
    """Miller and Rabin's test with the first twelve primes as bases and a hundred random ones."""
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    bases = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, *np.random.default_rng(0).integers(2, 2**60, 100).tolist()]
    for base in bases:
        powers = [pow(base, odd * 2**k, PRIME) for k in range(twos)]
        assert powers[0] == 1 or PRIME - 1 in powers, base
    assert 2 ** (8 * SECRET_BYTES) < PRIME < 2 ** (8 * DRAWN_BYTES - 100)


def test_any_that_are_enough_give_the_secret() -> None:
    shares = shares_of(3, 5)
    for number in (3, 4, 5):
        for some in combinations(shares, number):
            assert rebuild(some, 3) == SECRET
            assert rebuild(some[::-1], 3) == SECRET


def test_one_too_few_tell_nothing() -> None:
    """Two of three shares go with every secret: there is a third share that makes it of them."""
    shares = shares_of(3, 5)
    with pytest.raises(ValueError, match="2 shares of a secret that takes 3"):
        rebuild(shares[:2], 3)
    assert rebuild(shares[:2], 2) != SECRET
    for secret in (0, 1, int.from_bytes(SECRET, "big") + 1, 2**256 - 1):
        # The parabola through the secret at 0 and the shares at 1 and 2, at 3: s - 3 y1 + 3 y2.
        third = Share(3, (secret - 3 * shares[0].y + 3 * shares[1].y) % PRIME)
        assert int.from_bytes(rebuild([*shares[:2], third], 3), "big") == secret


@pytest.mark.parametrize("wrong", range(5))
def test_a_wrong_share_among_more_than_enough_is_refused(wrong: int) -> None:
    shares = shares_of(3, 5)
    shares[wrong] = Share(shares[wrong].x, (shares[wrong].y + 1) % PRIME)
    with pytest.raises(ValueError, match="no common polynomial"):
        rebuild(shares, 3)


@pytest.mark.parametrize(
    ("shares", "found"),
    [
        ([Share(1, 5), Share(1, 5)], "some are the same"),
        ([Share(1, 5), Share(2, 5), Share(1, 6)], "some are the same"),
        ([Share(0, 5), Share(2, 5)], "outside the field"),
        ([Share(1, 5), Share(2, PRIME)], "outside the field"),
        ([Share(1, 5), Share(PRIME + 2, 5)], "outside the field"),
        ([Share(1, PRIME - 1), Share(2, PRIME - 1)], "no common polynomial"),  # at zero it is no secret
    ],
)
def test_what_cannot_be_shares_is_refused(shares: list[Share], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        rebuild(shares, 2)


def test_every_coefficient_is_drawn() -> None:
    drawn = count(10)
    shares = split(SECRET, 4, 5, Given(*(next(drawn) for _ in range(3))))
    assert [share.y for share in shares] == [
        value_at(share.x, [int.from_bytes(SECRET, "big"), 10, 11, 12]) for share in shares
    ]
