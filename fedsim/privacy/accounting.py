"""Epsilon of Gaussian noise by Google's dp-accounting, and what noise on a lattice costs beside it. Imports no torch.

A multiplier is the standard deviation of the noise over the sensitivity to what makes two data sets neighbours, so that
all events here are those of added and removed units: dp-accounting's two accountants mean different things by a
multiplier under replaced ones (findings/dp_accounting_replace_one.sh). The one exception is sampling of a fixed size,
which has an event for replaced units alone, and there the multiplier is relative to the replaced unit, too.

Symbols: P numbers in a release, R releases, s the noise's standard deviation in steps of the lattice.
"""

import logging
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
from dp_accounting import (
    DpEvent,
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    SampledWithoutReplacementDpEvent,
)
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant, compute_epsilon
from scipy.optimize import brentq  # type: ignore[import-untyped]  # scipy has no types
from scipy.special import log_ndtr  # type: ignore[import-untyped]  # as above

from fedsim.errors import UserError

# It names every order of a divergence that it leaves out, which makes the result no less of a bound.
logging.getLogger("absl").setLevel(logging.ERROR)
Accountant = Literal["pld", "rdp"]
#: The layer's lattice is so fine that the noise's deviation is at least this many steps of it.
LEAST_STEPS = 2.0**26
#: Share of delta that is set aside for what the noise on the lattice has more than the rounded continuous noise.
LATTICE_SHARE = 1e-4
#: A PLD rounds losses up to multiples of epsilon over so many: by less than one part in a thousand, in some 50 ms.
LOSSES_IN_EPSILON = 5000
#: Losses further apart have ratios that no double holds.
LARGEST_GAP = 700.0
#: Beyond this mu epsilon is more than 10^15, and a double no longer tells it from its neighbours.
LARGEST_MU = 1e8
#: Whole orders, which are quick; the first ones are the best where epsilon is large.
FEW_ORDERS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
RELATIVE_TOLERANCE = 1e-4
LARGEST_MULTIPLIER = 1e6
LEAST_EPSILON = 1e-3


def gaussian(multiplier: float, releases: float = 1, rate: float = 1.0) -> DpEvent:
    """The event of Gaussian releases about the same sample of the units, which has each with probability ``rate``.

    Releases that follow on each other cost what one costs whose multiplier is smaller by their root (Dong, Roth and Su,
    JRSS B 2022, on composition). It is this one that the sampling amplifies: the releases share their sample.
    """
    event = GaussianDpEvent(multiplier / math.sqrt(releases))
    return event if rate >= 1 else PoissonSampledDpEvent(rate, event)


def fixed_size(multiplier: float, releases: float, drawn: int, population: int) -> DpEvent:
    """As ``gaussian``, to a sample of exactly ``drawn`` out of ``population`` units, without replacement."""
    event = GaussianDpEvent(multiplier / math.sqrt(releases))
    return SampledWithoutReplacementDpEvent(population, drawn, event)


@lru_cache(maxsize=4096)
def epsilon(event: DpEvent, times: int, delta: float, accountant: Accountant) -> float:
    """Return epsilon at ``delta`` of ``times`` independent repetitions of an event.

    The privacy loss distribution of plain Gaussian noise is a Gaussian, whose epsilon has a formula.
    """
    if times == 0:
        return 0.0
    if accountant == "pld" and isinstance(event, GaussianDpEvent):
        return exact_epsilon(math.sqrt(times) / event.noise_multiplier, delta)
    if accountant == "pld":
        bound = epsilon_bound(event, times, delta)
        gap = max(LEAST_EPSILON, bound) / LOSSES_IN_EPSILON
        if gap > LARGEST_GAP and isinstance(event, PoissonSampledDpEvent):
            # Sampling may cost less, never more.
            return min(epsilon(event.event, times, delta, accountant), bound)
        ledger = PLDAccountant(value_discretization_interval=gap)
        ledger.compose(event, times)
        # Composition makes losses of probability 1e-15 infinite, so that for a tiny delta the bound is the smaller one.
        return min(float(ledger.get_epsilon(delta)), bound)
    orders, divergences = _divergences(event)
    return float(compute_epsilon(orders, divergences * times, delta)[0])


def epsilon_bound(event: DpEvent, times: int, delta: float) -> float:
    """Return what epsilon is at most: a bound that takes a millisecond, by a few Rényi divergences."""
    orders, divergences = _divergences(event, FEW_ORDERS)
    return float(compute_epsilon(orders, divergences * times, delta)[0])


@lru_cache(maxsize=4096)
def _divergences(event: DpEvent, orders: tuple[float, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return orders, dp-accounting's own by default, and the Rényi divergences of an event at them."""
    replaced = isinstance(event, SampledWithoutReplacementDpEvent)
    relation = NeighboringRelation.REPLACE_ONE if replaced else NeighboringRelation.ADD_OR_REMOVE_ONE
    ledger = RdpAccountant(orders, relation)
    ledger.compose(event)
    return np.array(ledger.orders), np.array(ledger.rdp)


def exact_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon of Gaussian noise of multiplier 1 / ``mu`` (Balle and Wang, ICML 2018, theorem 8)."""
    if mu > LARGEST_MU:
        return math.inf
    if mu == 0 or gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    # The privacy loss is N(mu^2 / 2, mu^2); beyond its mean plus ten deviations and a root of ln(1 / delta) is nothing.
    high = mu * mu / 2 + mu * (10 + math.sqrt(2 * math.log(1 / delta)))
    return float(brentq(lambda value: gaussian_delta(mu, value) - delta, 0.0, high, xtol=1e-12, rtol=1e-14))


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return delta of Gaussian noise of multiplier 1 / ``mu`` at an epsilon; the same theorem."""
    first, second = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return max(0.0, -math.exp(first) * math.expm1(min(0.0, second - first)))


def solve(epsilon_of: Callable[[float], float], target: float, start: float = 1.0) -> float:
    """Return the smallest multiplier, to a part in 10^4, whose epsilon is at most ``target``.

    ``epsilon_of`` falls with the multiplier; ``start``: a guess. UserError where no multiplier up to 10^6 does it.
    """
    known = lru_cache(maxsize=None)(epsilon_of)
    low = high = start
    while known(high) > target:
        low, high = high, high * 2
        if high > LARGEST_MULTIPLIER:
            raise UserError("privacy.epsilon", f"{target:g}", f"an epsilon that noise of {LARGEST_MULTIPLIER:g} gives")
    while known(low) <= target:
        low, high = low / 2, low

    def excess(power: float) -> float:
        ends = {math.log(low): low, math.log(high): high}  # whose epsilon is known
        return math.log(max(known(ends.get(power) or math.exp(power)), LEAST_EPSILON * target) / target)

    middle = math.exp(brentq(excess, math.log(low), math.log(high), xtol=RELATIVE_TOLERANCE / 2))
    # Five digits, so that machines whose last bits differ still add the same noise.
    digits = 4 - math.floor(math.log10(middle))
    found: float = math.ceil(middle * 10**digits) / 10**digits
    while known(found) > target:
        found = round(found + 10**-digits, digits)
    return found


def beside_count(multiplier: float, count_noise: float) -> float:
    """Return the multiplier of the update's noise so that update and count together cost what ``multiplier`` says.

    ``count_noise``: the deviation of the noise on the sum of clients' bits, which are one half or minus one half.
    Andrew et al., NeurIPS 2021, theorem 1.
    """
    return float((multiplier**-2 - (2 * count_noise) ** -2) ** -0.5)


def on_lattice(multiplier: float, numbers: int, steps: float = LEAST_STEPS) -> float:
    """Return the multiplier that is left when each of P = ``numbers`` of a unit's message is rounded to the lattice.

    Rounding moves a message by at most sqrt(P) / 2 steps, and its largest norm is s / multiplier steps.
    """
    return multiplier / (1 + math.sqrt(numbers) * multiplier / (2 * steps))


def lattice_loss(numbers: int, releases: int, log_tail: float, steps: float = LEAST_STEPS) -> float:
    """Return eta: in R releases the logarithms of the two kinds of noise's probabilities differ by at most so much.

    This holds outside of a set that for either kind has a probability of at most R exp(-``log_tail``). The proof is in
    docs/privacy_lattice.md.
    """
    squared_norm = numbers + 2 * math.sqrt(numbers * log_tail) + 2 * log_tail
    squared_norm = (math.sqrt(squared_norm) + math.sqrt(numbers) / (2 * steps)) ** 2
    return releases * (numbers + squared_norm) / (8 * steps**2)


def discrete(epsilon: float, delta: float, releases: int, eta: float, log_tail: float) -> tuple[float, float]:
    """Return what (epsilon, delta) of rounded continuous noise is for discrete Gaussian noise, see ``lattice_loss``."""
    tail = releases * math.exp(-log_tail)
    return epsilon + 2 * eta, math.exp(eta) * (delta + releases * math.exp(epsilon - log_tail)) + tail


def before_lattice(delta: float) -> float:
    """Return the delta at which continuous noise is accounted, so that there is room for the lattice's."""
    return delta * (1 - LATTICE_SHARE) ** 2


def after_lattice(epsilon: float, delta: float, numbers: int, releases: int) -> float:
    """Return epsilon at ``delta`` for noise on the lattice, from that of continuous noise at ``before_lattice``.

    UserError where so many numbers and releases leave the bound no use.
    """
    if not math.isfinite(epsilon) or not releases:
        return epsilon
    log_tail = epsilon + math.log(3 * releases / (LATTICE_SHARE * delta))
    eta = lattice_loss(numbers, releases, log_tail)
    if eta > LATTICE_SHARE:
        found = f"{releases:,} releases of {numbers:,} numbers, for which noise on the lattice is not proven private"
        raise UserError("privacy.mechanism", found, "more noise, fewer rounds, or fewer trained parameters")
    return epsilon + 2 * eta
