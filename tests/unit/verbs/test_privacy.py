"""What ``launch.py privacy`` says, on jobs whose numbers are known."""

import math
from typing import Any

import pytest

from fedsim.build import Parts
from fedsim.data import ClientImages
from fedsim.errors import UserError
from fedsim.privacy.accounting import exact_epsilon
from fedsim.verbs import privacy
from tests.helpers import make_config, make_dataset, make_simulation

CLIENT = {"name": "client", "bound": 0.5}


def shown(monkeypatch: pytest.MonkeyPatch, method: str = "deer", rounds: int = 50, **words: Any) -> dict[str, str]:
    """The rows for twelve clients of eight images, one of them with sixteen."""
    dataset, parts = make_dataset([8] * 11 + [16])
    config = make_config(algorithm={"name": method}, rounds=rounds, clients={"count": 12}, privacy=words)
    sim = make_simulation(make_config(algorithm={"name": method}, clients={"count": 12}), dataset, parts)
    monkeypatch.setattr(privacy, "load_parts", lambda *_: Parts(dataset, ClientImages.of(parts), sim.model, sim.held))
    return dict(privacy.describe(config))


def test_a_client_level_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = shown(monkeypatch, mechanism=CLIENT, epsilon=3.0, delta=1e-3, budget=1.0)
    assert rows["protects"] == "whole clients"
    assert rows["neighbours"] == "one client more or less (add_remove); delta 0.001"
    # 7.33 for fifty releases; here they are a hundred.
    assert float(rows["noise multiplier"].split()[0]) == pytest.approx(7.334 * math.sqrt(2), rel=1e-3)
    # A share of 16 / 104 of the images, times the bound.
    assert rows["sensitivity"].startswith("0.0769231, of the mean: the largest weight 0.153846 times the bound")
    assert rows["releases"] == "2 a round, 100 in all 50 rounds"
    assert [name for name in rows if name.startswith("epsilon")] == [
        *("epsilon, 1 round", "epsilon, 2 rounds", "epsilon, 5 rounds", "epsilon, 10 rounds"),
        *("epsilon, 20 rounds", "epsilon, 50 rounds"),
    ]
    assert rows["epsilon, 50 rounds"] == "pld 3, rdp 3.383"
    # Epsilon 1 is 50 releases at 18.2, so 50 (10.37 / 18.2)^2 = 16.2 at this multiplier.
    assert rows["budget"] == "1: the last round is 8"
    assert rows["the server sees"].startswith("every client's message, without noise")
    assert "sigma" in rows
    assert "DEeR's release" in rows


def test_secure_aggregation_leaves_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"mechanism": {**CLIENT, "noise": "distributed"}, "noise_multiplier": 1.0, "delta": 1e-3}
    rows = shown(monkeypatch, "fedavg", secure_aggregation={}, observe=False, **words)
    assert rows["the server sees"].startswith("sums over a round's clients alone; who takes part")
    assert "simulation only" not in rows
    assert "DEeR's release" not in rows
    alone = shown(monkeypatch, "fedavg", secure_aggregation={})
    assert alone["protects"].startswith("nothing")


def test_a_record_level_ledger_names_the_client_that_spends_most(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"mechanism": {"name": "record", "bound": 2.0}, "noise_multiplier": 1.5, "delta": 1e-5}
    rows = shown(monkeypatch, "fedavg", 10, **words)
    assert rows["protects"] == "single images of every client"
    assert rows["sigma"] == "3, on that sum"
    assert rows["steps of the busiest client"] == "1 a round, 10 in all 10 rounds"
    assert rows["worst client"].endswith("images; of no other more is spent")


def test_deers_own_number_stands_beside_the_true_one(monkeypatch: pytest.MonkeyPatch) -> None:
    mechanism = {"name": "noise_regulator", "bound": 0.1, "form": "released"}
    rows = shown(monkeypatch, mechanism=mechanism, noise_multiplier=1.5, delta=1e-3)
    assert "it is added up while the run goes on" in rows["epsilon"]
    assert rows["DEeR's release"].startswith("claims epsilon ")
    # Two blocks of q, k and v in each phase, a hundred releases.
    true = exact_epsilon(math.sqrt(6 * 100) / 1.5, 1e-3)
    assert rows["which is truly"].startswith(f"epsilon {true:.1f} at delta 0.001 for a whole client: 6 matrices")


def test_noise_of_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = shown(monkeypatch, mechanism=CLIENT, noise_multiplier=0.0, delta=1e-3)
    assert rows["remark"] == "noise_multiplier 0 clips only: nothing is private, epsilon is infinite"
    assert rows["epsilon, 1 round"] == "pld inf, rdp inf"


def test_a_config_without_privacy_is_told_what_to_add() -> None:
    with pytest.raises(UserError, match=r"privacy: found null; expected a section, such as privacy="):
        privacy.describe(make_config())


@pytest.mark.parametrize(
    ("rounds", "expected"), [(1, [1]), (2, [1, 2]), (7, [1, 2, 5, 7]), (100, [1, 2, 5, 10, 20, 50, 100])]
)
def test_rounds_to_show(rounds: int, expected: list[int]) -> None:
    assert privacy.milestones(rounds) == expected
