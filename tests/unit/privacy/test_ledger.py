"""What a run spends: events, weights, the worst client, budgets; and the claims that are refused."""

import math
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest

from fedsim.config.experiment import with_noise
from fedsim.errors import UserError
from fedsim.privacy import accounting, deer_release
from fedsim.privacy.facts import public_facts
from fedsim.privacy.ledger import Ledger, PublicFacts
from fedsim.privacy.refusals import check_claims
from tests.helpers import TINY_VIT, make_config, make_dataset, make_simulation

CLIENT = {"name": "client", "bound": 0.5}
RECORD = {"name": "record", "bound": 1.0}
TWELVE = PublicFacts((50,) * 12, (4,) * 12, 1, 1, 1000)
MANY = PublicFacts((50,) * 2000, (4,) * 2000, 1, 1, 1000)


def make_ledger(
    facts: PublicFacts = TWELVE, rounds: int = 50, clients: dict[str, Any] | None = None, **privacy: Any
) -> Ledger:
    words = {"mechanism": CLIENT, "delta": 1e-3, **privacy}
    words |= {} if "epsilon" in words else {"noise_multiplier": words.get("noise_multiplier", 7.33)}
    sections = {"count": len(facts.sizes), "weighting": "uniform", **(clients or {})}
    return Ledger(make_config(rounds=rounds, clients=sections, privacy=words), facts)


def test_whole_clients_in_every_round() -> None:
    ledger = make_ledger()
    assert ledger.epsilon(50) == pytest.approx(3.00, abs=0.005)
    assert ledger.epsilon_by("rdp", 50) == pytest.approx(3.385, abs=0.005)
    assert [ledger.epsilon(round) for round in range(0, 51, 5)] == sorted({ledger.epsilon(r) for r in range(0, 51, 5)})
    assert (ledger.epsilon(0), ledger.worst_client(50), ledger.releases(50)) == (0.0, None, 50)


def test_two_phases_are_two_releases() -> None:
    two = PublicFacts(TWELVE.sizes, TWELVE.steps, 2, 2, 1000)
    assert make_ledger(two).epsilon(25) == pytest.approx(make_ledger().epsilon(50), abs=1e-6)
    assert make_ledger(two).releases(25) == 50


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_a_replaced_client_is_twice_the_sensitivity(accountant: str) -> None:
    """dp-accounting's RDP accountant would say 6.24 here."""
    words = {"noise_multiplier": 2.0, "adjacency": "replace_one", "accountant": accountant}
    ledger = make_ledger(rounds=10, **words)
    exact = accounting.exact_epsilon(2 * math.sqrt(10) / 2.0, 1e-3)
    assert exact == pytest.approx(14.08, abs=0.01)
    assert ledger.epsilon(10) == pytest.approx(exact, rel=1e-3 if accountant == "pld" else 0.15)
    assert ledger.epsilon(10) >= exact


def test_the_multiplier_is_solved_and_its_tries_are_told() -> None:
    words = {"mechanism": CLIENT, "delta": 1e-3, "epsilon": 3.0}
    config = make_config(rounds=50, clients={"count": 12, "weighting": "uniform"}, privacy=words)
    tries: list[str] = []
    ledger = Ledger(config, TWELVE, tries.append)
    assert ledger.multiplier == pytest.approx(7.33, rel=0.01)
    assert ledger.epsilon(50) <= 3.0 < ledger.epsilon(51)
    assert tries
    assert all("after 50 rounds" in line for line in tries)
    again = Ledger(with_noise(config, ledger.multiplier), TWELVE)
    assert again.epsilon(50) == ledger.epsilon(50)
    assert again.words.epsilon == 3.0


def test_poisson_cohorts_amplify_where_the_server_is_trusted() -> None:
    clients = {"sampling": "poisson", "per_round": 0.1}
    words = {"noise_multiplier": 1.0, "delta": 1e-4}
    ledger = make_ledger(MANY, 100, clients, **words)
    plain = accounting.epsilon(accounting.gaussian(1.0, rate=0.1), 100, 1e-4, "pld")
    assert ledger.epsilon(100) == pytest.approx(plain, rel=1e-3)
    assert ledger.epsilon(100) >= plain
    seen = {"mechanism": {**CLIENT, "noise": "distributed"}, "secure_aggregation": {}}
    assert make_ledger(MANY, 100, {"per_round": 0.1}, **words, **seen).epsilon(100) > 3 * plain


def test_phases_of_a_round_share_their_cohort() -> None:
    clients = {"sampling": "poisson", "per_round": 0.1}
    two = PublicFacts(MANY.sizes, MANY.steps, 2, 2, 1000)
    words = {"noise_multiplier": 1.0, "delta": 1e-4}
    assert make_ledger(two, 50, clients, **words).epsilon(50) > 1.2 * make_ledger(MANY, 100, clients, **words).epsilon(
        100
    )


def test_a_fixed_number_of_clients() -> None:
    words = {"noise_multiplier": 4.0, "delta": 1e-4, "adjacency": "replace_one", "accountant": "rdp"}
    ledger = make_ledger(MANY, 10, {"per_round": 100}, **words)
    assert 0 < ledger.epsilon(10) < make_ledger(MANY, 10, **words).epsilon(10)
    assert ledger.epsilon_by("pld", 10) is None


def test_every_message_has_its_noise() -> None:
    words = {"noise_multiplier": 2.0, "adjacency": "replace_one"}
    local = make_ledger(MANY, 10, {"per_round": 100}, delta=1e-4, mechanism={**CLIENT, "noise": "local"}, **words)
    assert local.epsilon(10) == pytest.approx(make_ledger(MANY, 10, delta=1e-4, **words).epsilon(10))


@pytest.mark.parametrize(
    ("clients", "weight"),
    [
        ({}, 1 / 4),
        ({"weighting": "samples"}, 70 / 100),
        ({"sampling": "poisson", "per_round": 2}, 1 / 4 / (2 / 5)),
        ({"per_round": 2, "weighting": "samples"}, 70 / 100 / (2 / 4)),
    ],
)
def test_the_sensitivity_follows_the_clients_weights(clients: dict[str, Any], weight: float) -> None:
    facts = PublicFacts((10, 10, 0, 10, 70), (1, 1, 0, 1, 5), 1, 1, 10)
    more = {"adjacency": "replace_one", "accountant": "rdp"} if clients.get("sampling", "all") == "all" else {}
    assert make_ledger(facts, clients=clients, **more).largest_weight == pytest.approx(weight)


def test_the_client_that_spends_most_is_named_and_nobody_spends_more() -> None:
    """With as many steps as its images take, a small client's images are drawn more often, in fewer steps."""
    sizes = (300, 40, 33, 1000, 0, 41, 500)
    steps = tuple(math.ceil(size / 16) for size in sizes)
    facts = PublicFacts(sizes, steps, 2, 2, 10)
    for accountant in ("pld", "rdp"):
        words = {"mechanism": RECORD, "noise_multiplier": 0.9, "delta": 1e-5, "accountant": accountant}
        ledger = make_ledger(facts, 10, **words)
        alone = {
            client: accounting.epsilon(
                accounting.gaussian(0.9, rate=16 / size), 2 * 10 * steps[client], 1e-5, accountant
            )
            for client, size in enumerate(sizes)
            if size
        }
        worst = max(alone, key=alone.__getitem__)
        assert ledger.epsilon(10) == alone[worst]
        assert ledger.worst_client(10) == worst


def test_a_client_smaller_than_a_batch_is_in_every_step() -> None:
    facts = PublicFacts((5, 8), (3, 3), 1, 1, 10)
    ledger = make_ledger(facts, 10, mechanism=RECORD, noise_multiplier=4.0, delta=1e-2)
    assert ledger.epsilon(10) == accounting.epsilon(accounting.gaussian(4.0), 30, 1e-2, "pld")
    assert ledger.releases(10) == 30


def test_the_run_ends_before_its_budget_does() -> None:
    ledger = make_ledger(budget=2.0)
    last = ledger.last_round(2.0)
    assert ledger.epsilon(last) <= 2.0 < ledger.epsilon(last + 1)
    assert (ledger.last_round(1e-3), ledger.last_round(100.0)) == (0, 50)


def test_quantile_clipping_counts_one_number_more_and_shares_the_noise() -> None:
    mechanism = {**CLIENT, "clipping": {"name": "quantile", "count_noise": 5.0}}
    ledger = make_ledger(mechanism=mechanism)
    assert ledger.numbers == 1001
    assert ledger.update_multiplier == pytest.approx((7.33**-2 - 10.0**-2) ** -0.5)
    assert ledger.epsilon(50) == pytest.approx(make_ledger().epsilon(50), rel=1e-5)


def test_what_a_layer_has_added_up() -> None:
    released = {"name": "noise_regulator", "bound": 0.5, "form": "released"}
    ledger = make_ledger(mechanism=released)
    assert ledger.is_measured
    spent = 50 / 7.33**2
    assert ledger.epsilon_of(spent) == pytest.approx(make_ledger().epsilon(50), rel=1e-4)
    replaced = make_ledger(mechanism=released, adjacency="replace_one")
    assert replaced.epsilon_of(spent) == pytest.approx(ledger.epsilon_of(4 * spent))
    assert ledger.epsilon_of(math.inf) == math.inf


def test_deers_claims_on_oct() -> None:
    """18,400 images, 12 clients, batches of 512 // 12: what the issue has computed by other means."""
    plan = (50, 5, 512 // 12, [18400 / 12] * 12)
    for claimed, true in ((0.1, 190.0), (1.0, 1244.0)):
        multiplier = deer_release.noise_multiplier(claimed, 1 / 12, *plan)
        assert deer_release.true_epsilon(multiplier, 36, 100, 1e-3) == pytest.approx(true, abs=0.5)


def test_without_noise_nothing_is_private() -> None:
    assert make_ledger(noise_multiplier=0.0).epsilon(1) == math.inf


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"delta": 0.1}, {}, "privacy.delta: found 0.1, at which one of the 12 clients"),
    ({"delta": 0.02, "mechanism": RECORD}, {}, "privacy.delta: found 0.02, at which one of the 50 images"),
    ({"noise_multiplier": 0.0, "budget": 3.0}, {}, "privacy.budget: found 3 with noise_multiplier: 0"),
    ({"noise_multiplier": 1e-200}, {}, "privacy.noise_multiplier: found 1e-200; expected 0, or 1e-08 or more"),
    ({}, {"per_round": 6}, "clients.sampling: found uniform with adjacency: add_remove and accountant: pld"),
    ({"adjacency": "replace_one"}, {"per_round": 6}, "clients.sampling: found uniform with adjacency: replace_one"),
    ({"adjacency": "replace_one"}, {"per_round": 6, "sampling": "poisson"}, "privacy.adjacency: found replace_one"),
    ({}, {"per_round": 6, "sampling": "volume"}, "clients.sampling: found volume, which no accountant has"),
    ({}, {"sampling": "multinomial"}, "clients.sampling: found multinomial, which no accountant has"),
    ({"mechanism": {**CLIENT, "noise": "local"}}, {}, "privacy.adjacency: found add_remove with noise: local"),
    (
        {"mechanism": {"name": "noise_regulator", "bound": 1.0, "form": "released"}, "epsilon": 3.0},
        {},
        "privacy.epsilon: found 3 with form: released",
    ),
    (
        {"mechanism": {"name": "noise_regulator", "bound": 1.0, "form": "released"}, "budget": 3.0},
        {},
        "privacy.budget: found 3 with form: released",
    ),
    (
        {"secure_aggregation": {}},
        {"per_round": 6, "sampling": "poisson"},
        "clients.sampling: found poisson with secure",
    ),
]


@pytest.mark.parametrize(("privacy", "clients", "message"), REFUSED, ids=[message[:60] for *_, message in REFUSED])
def test_a_claim_that_cannot_hold_is_refused(privacy: dict[str, Any], clients: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        make_ledger(clients=clients, **privacy)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_where_nothing_is_sent_there_is_nothing_to_protect() -> None:
    with pytest.raises(UserError, match="fedavg, whose clients send nothing; expected privacy: null"):
        make_ledger(PublicFacts((50,) * 12, (4,) * 12, 1, 0, 0))


@pytest.mark.parametrize("secure", [None, {}])
def test_clients_own_scores_are_no_secret(secure: dict[str, Any] | None) -> None:
    words = {"observe": False, "secure_aggregation": secure}
    words |= {} if secure is not None else {"mechanism": CLIENT, "noise_multiplier": 1.0, "delta": 1e-3}
    clients = {"count": 2}
    config = make_config(clients=clients, privacy=words, evaluate={"clients": True})
    with pytest.raises(UserError, match=r"evaluate.clients: found true with privacy.observe: false"):
        check_claims(config, [5, 5])
    check_claims(make_config(clients=clients, privacy=words), [5, 5])
    check_claims(make_config(clients=clients, evaluate={"clients": True}), [5, 5])


@pytest.mark.parametrize(
    ("method", "trainings", "phases", "groups"),
    [("fedavg", 1, 1, 1), ("deer", 2, 2, 1), ("ditto", 2, 1, 1), ("feddyn", 1, 1, 2), ("local", 1, 0, 0)],
)
def test_facts_are_those_of_the_messages(method: str, trainings: int, phases: int, groups: int) -> None:
    dataset, parts = make_dataset([40, 0, 3])
    config = make_config(algorithm={"name": method}, clients={"count": 3, "per_block": 1})
    sim = make_simulation(config, dataset, parts)
    facts = public_facts(sim.config, sim.algorithm, sim.sizes)
    assert (facts.sizes, facts.steps, facts.present) == ((40, 0, 3), (3, 0, 1), [0, 2])
    assert (facts.trainings, facts.phases) == (trainings, phases)
    # Two blocks, three slices, rank 2, width 32: as many numbers in A as in B; and the head.
    factor, head = 2 * 3 * 2 * 32, 3 * 32 + 3
    assert facts.numbers == groups * (head + (factor if method == "deer" else 2 * factor))


def test_the_largest_message_of_any_round_counts() -> None:
    """RoLoRA's second round sends A, which on the feed-forward's second layer is four times as wide as B."""
    lora = {"r": 2, "target": ["fc2"]}
    dataset, parts = make_dataset([8, 8])
    found = []
    for rounds in (1, 2):
        words = {"rounds": rounds, "algorithm": {"name": "rolora"}, "model": {**TINY_VIT, "lora": lora}}
        sim = make_simulation(make_config(**words, clients={"count": 2, "per_block": 1}), dataset, parts)
        found.append(public_facts(sim.config, sim.algorithm, sim.sizes))
    head = 3 * 32 + 3
    assert [facts.numbers for facts in found] == [2 * 2 * 32 + head, 2 * 2 * 128 + head]
    assert [(facts.trainings, facts.phases) for facts in found] == [(1, 1), (1, 1)]


def test_rounds_that_are_not_there_cost_nothing_and_each_costs_less_than_the_first() -> None:
    ledger = make_ledger()
    spent = [ledger.epsilon(round) for round in range(6)]
    added = [after - before for before, after in pairwise(spent)]
    assert all(later < first for first, later in pairwise(added))


def test_the_ledger_needs_no_torch() -> None:
    code = "import fedsim.privacy.ledger, fedsim.privacy.deer_release, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
