"""Epsilon against recorded figures, the exact formula, and opacus's accountants where they have the same events."""

import math
from collections.abc import Callable

import pytest
from dp_accounting import DpEvent
from dp_accounting.pld import PLDAccountant
from opacus.accountants import PRVAccountant, RDPAccountant

from fedsim.errors import UserError
from fedsim.privacy import accounting
from fedsim.privacy.accounting import (
    Accountant,
    beside_count,
    epsilon,
    exact_epsilon,
    fixed_size,
    gaussian,
    gaussian_delta,
)


def test_a_recorded_calibration() -> None:
    assert epsilon(gaussian(7.33), 50, 1e-3, "pld") == pytest.approx(3.00, abs=0.005)
    assert epsilon(gaussian(2.0 / 2), 10, 1e-3, "pld") == pytest.approx(14.08, abs=0.005)
    assert epsilon(gaussian(1.0, rate=0.1), 100, 1e-5, "pld") == pytest.approx(7.047, abs=0.001)
    assert epsilon(gaussian(1.0, rate=0.1), 100, 1e-5, "rdp") == pytest.approx(7.904, abs=0.001)


@pytest.mark.parametrize(("target", "multiplier"), [(1, 18.2), (3, 7.33), (8, 3.39)])
def test_a_multiplier_is_solved_for_an_epsilon(target: float, multiplier: float) -> None:
    def spent(tried: float) -> float:
        return epsilon(gaussian(tried), 50, 1e-3, "pld")

    found = accounting.solve(spent, target, start=5.0)
    assert found == pytest.approx(multiplier, rel=0.01)
    assert spent(found) <= target < spent(found * (1 - 3e-4))


def test_an_epsilon_that_no_noise_gives_is_refused() -> None:
    with pytest.raises(UserError, match=r"privacy.epsilon: found 0.1; expected an epsilon that noise of 1e"):
        accounting.solve(lambda _: 0.2, 0.1)


@pytest.mark.parametrize(("multiplier", "releases", "delta"), [(7.33, 50, 1e-3), (1.0, 1, 1e-5), (0.3, 50, 1e-3)])
def test_pld_is_the_exact_value(multiplier: float, releases: int, delta: float) -> None:
    exact = exact_epsilon(math.sqrt(releases) / multiplier, delta)
    ledger = PLDAccountant(value_discretization_interval=max(1e-4, exact / 1e5))
    ledger.compose(gaussian(multiplier), releases)
    assert exact - 1e-6 <= ledger.get_epsilon(delta) <= exact * (1 + 1e-4)
    assert epsilon(gaussian(multiplier), releases, delta, "pld") == exact
    assert epsilon(gaussian(multiplier, releases=releases), 1, delta, "pld") == pytest.approx(exact, rel=1e-12)
    assert gaussian_delta(math.sqrt(releases) / multiplier, exact) == pytest.approx(delta, rel=1e-6)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize("event", [gaussian(1e-4), gaussian(1e-4, rate=0.5)])
def test_hardly_any_noise_costs_what_it_does(event: DpEvent, accountant: Accountant) -> None:
    """dp-accounting's distributions have no room for such losses; sampling a half six times hides nothing from 1 %."""
    spent = epsilon(event, 6, 0.01, accountant)
    assert exact_epsilon(math.sqrt(6) / 1e-4, 0.01) == pytest.approx(6 / 2 * 1e8, rel=1e-3)
    assert 6 / 2 * 1e8 < spent < 1.2 * 6 / 2 * 1e8


def test_more_than_a_double_holds_is_infinite() -> None:
    assert exact_epsilon(1e8, 1e-3) == pytest.approx(0.5e16)
    assert exact_epsilon(1e150, 1e-3) == exact_epsilon(1e200, 1e-3) == exact_epsilon(math.inf, 1e-3) == math.inf


def test_nothing_is_spent_where_delta_is_larger_than_the_distance() -> None:
    assert gaussian_delta(0.01, 0.0) == pytest.approx(0.00399, abs=1e-4)
    assert exact_epsilon(0.01, 1e-2) == exact_epsilon(0.0, 1e-5) == epsilon(gaussian(1.0), 0, 1e-5, "pld") == 0.0


@pytest.mark.parametrize(("multiplier", "rate", "steps", "delta"), [(1.0, 0.1, 100, 1e-5), (0.7, 1 / 512, 1000, 1e-5)])
def test_opacus_says_the_same_of_the_same_events(multiplier: float, rate: float, steps: int, delta: float) -> None:
    rdp, prv = RDPAccountant(), PRVAccountant()
    rdp.history = prv.history = [(multiplier, rate, steps)]
    event = gaussian(multiplier, rate=rate)
    assert epsilon(event, steps, delta, "rdp") == pytest.approx(rdp.get_epsilon(delta), rel=1e-3)
    assert epsilon(event, steps, delta, "pld") == pytest.approx(prv.get_epsilon(delta), abs=0.02)


@pytest.mark.parametrize(
    "event", [gaussian(0.8), gaussian(2.0, rate=0.3), gaussian(0.5, rate=1 / 300)], ids=lambda event: str(event)[:30]
)
def test_the_quick_bound_is_one(event: DpEvent) -> None:
    for times in (1, 30, 1000):
        bound = accounting.epsilon_bound(event, times, 1e-5)
        assert epsilon(event, times, 1e-5, "pld") <= epsilon(event, times, 1e-5, "rdp") * (1 + 1e-9)
        assert epsilon(event, times, 1e-5, "rdp") <= bound * (1 + 1e-9)


def test_a_tiny_delta_has_a_finite_epsilon() -> None:
    """Of a composed PLD epsilon is infinite at 1e-15, and larger than Rényi's at 1e-14."""
    event, deltas = gaussian(1.0, rate=0.01), (1e-12, 1e-14, 1e-15)
    seen = [epsilon(event, 1000, delta, "pld") for delta in deltas]
    assert seen == sorted(seen)
    assert seen[0] < epsilon(event, 1000, deltas[0], "rdp") - 0.4
    assert all(one <= accounting.epsilon_bound(event, 1000, delta) for one, delta in zip(seen, deltas, strict=True))


@pytest.mark.parametrize(("rate", "steps"), [(0.1, 10), (0.01, 5000), (0.5, 3)])
def test_losses_rounded_up_in_coarser_steps_change_little(rate: float, steps: int) -> None:
    ledger = PLDAccountant()
    ledger.compose(gaussian(1.0, rate=rate), steps)
    fine = ledger.get_epsilon(1e-5)
    assert fine * (1 - 1e-6) <= epsilon(gaussian(1.0, rate=rate), steps, 1e-5, "pld") <= fine * (1 + 1e-3)


def test_releases_about_one_sample_are_no_releases_about_two() -> None:
    """Two phases of a round see the same clients: that the first left one out says that the second did."""
    same, own = gaussian(1.0, releases=2, rate=0.1), gaussian(1.0, rate=0.1)
    assert epsilon(same, 50, 1e-5, "pld") > 1.2 * epsilon(own, 100, 1e-5, "pld")


def test_a_sample_of_fixed_size_has_an_event_with_one_accountant_only() -> None:
    event = fixed_size(1.0, 1, 10, 100)
    assert 0 < epsilon(event, 10, 1e-5, "rdp") < epsilon(gaussian(1.0), 10, 1e-5, "rdp")
    with pytest.raises(Exception, match="SampledWithoutReplacement"):
        epsilon(event, 10, 1e-5, "pld")


@pytest.mark.parametrize("count_noise", [1.0, 3.0, 20.0])
def test_update_and_count_cost_together_what_the_multiplier_says(count_noise: float) -> None:
    update = beside_count(1.5, count_noise)
    both = math.sqrt(update**-2 + (2 * count_noise) ** -2)
    assert exact_epsilon(both, 1e-5) == pytest.approx(exact_epsilon(1 / 1.5, 1e-5))


def lattice_delta(steps: float, shift: int, epsilon: float, pmf: Callable[[int], float]) -> float:
    """Delta of noise of integers, computed from its probabilities, at an epsilon and a shift."""
    reach = range(-int(14 * steps) - abs(shift) - 20, int(14 * steps) + abs(shift) + 20)
    return sum(max(0.0, pmf(k) - math.exp(epsilon) * pmf(k - shift)) for k in reach)


def discrete_pmf(steps: float) -> Callable[[int], float]:
    reach = int(20 * steps) + 30
    total = sum(math.exp(-k * k / (2 * steps**2)) for k in range(-reach, reach + 1))
    return lambda k: math.exp(-k * k / (2 * steps**2)) / total


def rounded_pmf(steps: float) -> Callable[[int], float]:
    def cumulative(x: float) -> float:
        return 0.5 * math.erfc(-x / (steps * math.sqrt(2)))

    # From the nearer tail, so that nothing cancels.
    return lambda k: cumulative(-abs(k) + 0.5) - cumulative(-abs(k) - 0.5)


@pytest.mark.parametrize("steps", [1.0, 1.7, 3.0, 8.0])
def test_each_number_is_as_likely_on_the_lattice_as_rounded_up_to_the_bound(steps: float) -> None:
    discrete, rounded = discrete_pmf(steps), rounded_pmf(steps)
    shares = []
    for k in range(int(6 * steps)):
        bound = max(1.0, (k / steps) ** 2) / (8 * steps**2)
        shares.append(abs(math.log(rounded(k) / discrete(k))) / bound)
    assert 0.3 < max(shares) <= 1.0, "it holds, and is not larger than it must be by much"


@pytest.mark.parametrize("steps", [2.0, 3.0, 6.0])
@pytest.mark.parametrize("aim", [0.3, 1.0, 2.0])
def test_the_bound_for_the_lattice_holds_and_says_something(steps: float, aim: float) -> None:
    shift = round(steps)
    continuous = gaussian_delta(shift / steps, aim)
    for log_tail in (8.0, 12.0, 20.0):
        eta = accounting.lattice_loss(1, 1, log_tail, steps)
        reached, delta = accounting.discrete(aim, continuous, 1, eta, log_tail)
        assert lattice_delta(steps, shift, reached, discrete_pmf(steps)) <= delta
    assert delta < 1.01 * math.exp(eta) * continuous
    # On a lattice twice as fine it is a quarter: at the real one nothing.
    assert accounting.lattice_loss(1, 1, log_tail, 2 * steps) == pytest.approx(eta / 4, rel=0.1)
    assert accounting.lattice_loss(10**6, 100, 60.0) < 1e-8


def test_the_lattice_is_no_gift() -> None:
    """Somewhere the discrete noise is less private than the continuous one: without the bound the claim were wrong."""
    steps, shift = 0.8, 1
    worse = [
        lattice_delta(steps, shift, aim / 10, discrete_pmf(steps)) - gaussian_delta(shift / steps, aim / 10)
        for aim in range(1, 40)
    ]
    assert max(worse) > 1e-3


def test_what_the_lattice_costs_a_run() -> None:
    continuous = epsilon(gaussian(7.33), 50, accounting.before_lattice(1e-3), "pld")
    after = accounting.after_lattice(continuous, 1e-3, 10**6, 50)
    plain = epsilon(gaussian(7.33), 50, 1e-3, "pld")
    assert continuous < after < continuous + 1e-7
    assert plain < after < plain + 1e-3
    log_tail = continuous + math.log(3 * 50 / (accounting.LATTICE_SHARE * 1e-3))
    eta = accounting.lattice_loss(10**6, 50, log_tail)
    reached, delta = accounting.discrete(continuous, accounting.before_lattice(1e-3), 50, eta, log_tail)
    assert (reached, delta) == (after, pytest.approx(1e-3, rel=1e-3))
    assert delta <= 1e-3
    assert accounting.after_lattice(math.inf, 1e-3, 10, 1) == math.inf
    with pytest.raises(UserError, match="not proven private"):
        accounting.after_lattice(continuous, 1e-3, 10**10, 10**4)


def test_rounding_moves_a_message() -> None:
    assert accounting.on_lattice(2.0, 0) == 2.0
    # Four numbers move by half a step each: a norm of 1, beside a bound of 8 / 2 steps.
    assert accounting.on_lattice(2.0, 4, steps=8.0) == pytest.approx(8.0 / (4 + 1))
    assert accounting.on_lattice(10.0, 10**6) == pytest.approx(10.0, rel=1e-4)
