"""The accountant of DEeR's published code (7dd430e), which is one of single images over the pooled data.

It is told a sample rate of batch / N, T E N / batch steps, and delta = 1 / clients; the mechanism clips and noises
updates of whole clients, every LoRA matrix by itself, and in two phases a round. Imports no torch.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant, compute_epsilon
from scipy.special import gammaln, gammasgn, log_ndtr, logsumexp  # type: ignore[import-untyped]  # no types

from fedsim.privacy import accounting

#: The orders, the first upper end and the tolerance of opacus 1.4.1, which the release calls.
ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *range(12, 64))
FIRST_MULTIPLIER = 20.0
EPSILON_TOLERANCE = 0.01


def noise_multiplier(
    epsilon: float, delta: float, rounds: float, epochs: float, batch_size: float, sizes: Sequence[int]
) -> float:
    """Return the multiplier that the release computes for an epsilon (utils.py, ``compute_noise_multiplier``).

    Bisection until the epsilon is at most 0.01 below the target; ``sizes``: the clients' numbers of images.
    """
    rate, steps = plan(rounds, epochs, batch_size, sizes)
    low, high, reached = 0.0, FIRST_MULTIPLIER / 2, math.inf
    while reached > epsilon:
        high *= 2
        reached = claimed_epsilon(high, delta, rate, steps)
    while epsilon - reached > EPSILON_TOLERANCE:
        middle = (low + high) / 2
        found = claimed_epsilon(middle, delta, rate, steps)
        if found < epsilon:
            high, reached = middle, found
        else:
            low = middle
    return high


def plan(rounds: float, epochs: float, batch_size: float, sizes: Sequence[int]) -> tuple[float, float]:
    """Return the sample rate and the number of steps that the release's accountant is told."""
    return batch_size / sum(sizes), sum(rounds * epochs * (size / batch_size) for size in sizes)


def claimed_epsilon(multiplier: float, delta: float, rate: float, steps: float) -> float:
    """Return epsilon of so many steps, perhaps not a whole number, as the release's accountant has it."""
    return float(compute_epsilon(ORDERS, _divergences(multiplier, rate) * steps, delta)[0])


def true_epsilon(multiplier: float, num_matrices: int, releases: int, delta: float) -> float:
    """Return epsilon for a whole client of the release's noise, all clients in every round and no regulator.

    Each of so many matrices is clipped to C, so that one client changes the sum of all clients by
    sqrt(num_matrices) C; the noise of all clients together has the deviation multiplier * C.
    """
    return accounting.exact_epsilon(math.sqrt(num_matrices * releases) / multiplier, delta)


@lru_cache
def _divergences(multiplier: float, rate: float) -> np.ndarray:
    """Return the Rényi divergences of one step at ``ORDERS``.

    dp-accounting's for whole orders. Of others it leaves out those whose series has not ended after 1,000 terms, which
    the release's library adds up to the end, and which decide where the multiplier is small.
    """
    if rate >= 1:
        return np.array(ORDERS) / (2 * multiplier**2)
    whole = [order for order in ORDERS if order == int(order)]
    ledger = RdpAccountant(whole)
    ledger.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(multiplier)))
    known = dict(zip(whole, ledger.rdp, strict=True))
    return np.array([known[order] if order in known else _broken_order(multiplier, rate, order) for order in ORDERS])


def _broken_order(multiplier: float, rate: float, order: float) -> float:
    """Return the divergence of a step at an order that is no whole number (Mironov, Talwar and Zhang, arXiv 1908.10530,
    section 3.3): two integrals, each a series in the binomial coefficients of the order."""
    # A term falls as its number to the power -(order + 2): the first one that is left out is below exp(-36).
    numbers = np.arange(math.ceil(math.exp(36 / (order + 2))) + 2)
    others = order - numbers
    split = multiplier**2 * math.log(1 / rate - 1) + 0.5
    logs = gammaln(order + 1) - gammaln(numbers + 1) - gammaln(others + 1)
    signs = gammasgn(others + 1)

    def part(drawn: np.ndarray, place: np.ndarray) -> np.ndarray:
        weights = drawn * math.log(rate) + (order - drawn) * math.log1p(-rate)
        found: np.ndarray = logs + weights + drawn * (drawn - 1) / (2 * multiplier**2) + log_ndtr(place / multiplier)
        return found

    terms = np.concatenate([part(numbers, split - numbers), part(others, others - split)])
    return float(logsumexp(terms, b=np.tile(signs, 2)) / (order - 1))
