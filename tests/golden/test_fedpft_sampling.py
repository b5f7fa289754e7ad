"""Who takes part, and the learning rates, against FedPFT's released server (fedpft_misc.npz: sample/*, lr/*)."""

import numpy as np
import pytest

from fedsim.schedule.cohort import draw_clients, draw_cohort
from fedsim.training.optim import learning_rate
from tests.golden.clip import load, load_words
from tests.helpers import make_config

GOLDEN = {name: value.numpy() for name, value in load("fedpft_misc").items()}
SIZES = GOLDEN["agg/datavol"].tolist()
COUNT = int(GOLDEN["sample/num_clients"])
SETTINGS = load_words("fedpft_misc")["lr/settings"]
ROUNDS, LR = SETTINGS["T"], SETTINGS["lr0"]
# The release's number: what it is here.
SCHEDULES = {
    -1: {"name": "constant"},
    0: {"name": "step", "every": 1, "factor": SETTINGS["lr_decay"]},
    1: {"name": "inverse"},
    2: {"name": "linear", "final": 1 / ROUNDS},
    3: {"name": "constant"},
}
OFF_BY_ONE = (1, 2)


def ours(kind: int, round: int) -> float:
    schedule = make_config(train={"schedule": SCHEDULES[kind]}).train.schedule
    return learning_rate(LR, schedule, round, ROUNDS)


@pytest.mark.parametrize(("released", "sampling"), [("uniform", "uniform"), ("md", "multinomial")])
def test_the_same_stream_draws_the_same_clients(released: str, sampling: str) -> None:
    """The release cuts the share of clients off, say 0.3 * 12 = 3.6 to 3, where ``per_round: 0.3`` rounds to 4."""
    expected = GOLDEN[f"sample/{released}"]
    number = max(1, int(GOLDEN["sample/proportion"] * COUNT))
    config = make_config(clients={"count": COUNT, "per_round": number, "sampling": sampling}).clients
    stream = np.random.RandomState(int(GOLDEN["sample/np_random_seed"]))
    drawn = [draw_clients(config, SIZES, range(COUNT), number, stream) for _ in range(len(expected) // number)]
    np.testing.assert_array_equal(np.concatenate(drawn), expected)


def test_all_clients_take_part_in_every_round() -> None:
    config = make_config(clients={"count": COUNT, "per_round": "all"})
    for round, expected in enumerate(GOLDEN["sample/full"].reshape(-1, COUNT), start=1):
        cohort = draw_cohort(config.clients, config.train, SIZES, seed=0, round=round)
        assert sorted(cohort.clients) == expected.tolist()


@pytest.mark.parametrize("kind", [-1, 0, 3])
def test_schedules_without_the_off_by_one(kind: int) -> None:
    found = [ours(kind, round) for round in range(1, ROUNDS + 1)]
    np.testing.assert_allclose(found, GOLDEN[f"lr/type{kind}/client_lr_used_in_round"], rtol=1e-12)
    coming = [ours(kind, round) for round in range(2, ROUNDS + 2)]
    np.testing.assert_allclose(coming, GOLDEN[f"lr/type{kind}/server_lr_after_round"], rtol=1e-12)
    assert coming[-1] == pytest.approx(GOLDEN[f"lr/type{kind}/client_lr_left"].item(), rel=1e-12)


@pytest.mark.parametrize("kind", OFF_BY_ONE)
def test_the_releases_rate_of_a_round_is_that_of_the_next(kind: int) -> None:
    """From round 2 on the release is one round ahead; its linear rate of 0 in the last round leaves the one before."""
    released = GOLDEN[f"lr/type{kind}/client_lr_used_in_round"]
    assert ours(kind, 1) == released[0] == LR
    ahead = [ours(kind, round + 1) for round in range(2, ROUNDS + 1)]
    if kind == 2:
        assert ahead[-1] == pytest.approx(0, abs=1e-18)
        ahead[-1] = ahead[-2]
    np.testing.assert_allclose(ahead, released[1:], rtol=1e-12)
    left = [ours(kind, round + 2) for round in range(1, ROUNDS + 1)]
    np.testing.assert_allclose(left, GOLDEN[f"lr/type{kind}/server_lr_after_round"], rtol=1e-12, atol=1e-18)
    assert left[-1] == pytest.approx(GOLDEN[f"lr/type{kind}/client_lr_left"].item(), rel=1e-12)
