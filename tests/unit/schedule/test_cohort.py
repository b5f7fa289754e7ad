"""Who takes part in a round, and with which weight."""

import tracemalloc
from array import array
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.errors import UserError
from fedsim.schedule.cohort import Cohort, draw_cohort, num_local_steps
from tests.helpers import make_config

SIZES = [10, 0, 30, 5, 20, 0, 35]


def cohort(round: int = 1, seed: int = 0, sizes: list[int] = SIZES, batch_size: int = 16, **clients: Any) -> Cohort:
    config = make_config(clients={"count": len(sizes), **clients}, train={"batch_size": batch_size})
    return draw_cohort(config.clients, config.train, sizes, seed, round)


def test_all_with_images_longest_first() -> None:
    found = cohort()
    # Steps of 16 images: 3 (35), 2 (30), 2 (20), 1 (10), 1 (5).
    assert found.clients == (6, 2, 4, 0, 3)
    assert found.weights.tolist() == [0.35, 0.3, 0.2, 0.1, 0.05]
    assert found.weights.dtype == torch.float64


def test_uniform_weights() -> None:
    assert cohort(weighting="uniform").weights.tolist() == [0.2] * 5


def test_ties_go_by_size_then_number() -> None:
    assert cohort(sizes=[3, 7, 7, 5], batch_size=16).clients == (1, 2, 3, 0)


@pytest.mark.parametrize(
    ("per_round", "number"), [(2, 2), (7, 5), (1, 1), (0.5, 4), (0.3, 2), (0.01, 1), (0.99, 5), ("all", 5)]
)
def test_how_many(per_round: Any, number: int) -> None:
    """A fraction is of all clients, empty ones too; never more than there are with images."""
    found = cohort(per_round=per_round)
    assert len(found.clients) == len(set(found.clients)) == number
    assert all(SIZES[client] for client in found.clients)
    assert found.weights.sum().item() == pytest.approx(1, abs=1e-15)


def test_same_seed_and_round_same_cohort() -> None:
    draws = [cohort(round, seed, per_round=2).clients for seed in (0, 1) for round in range(1, 21)]
    again = [cohort(round, seed, per_round=2).clients for seed in (0, 1) for round in range(1, 21)]
    assert draws == again
    assert draws[:20] != draws[20:]
    assert len(set(draws[:20])) > 1


def test_poisson_tosses_a_coin_for_everyone() -> None:
    """Each of five clients is in with 2/7, whoever else is; sometimes nobody is."""
    rounds = [cohort(round, per_round=2, sampling="poisson") for round in range(1, 2001)]
    seen = Counter(client for one in rounds for client in one.clients)
    assert all(abs(seen[client] / 2000 - 2 / 7) < 0.04 for client in (0, 2, 3, 4, 6))
    # The number of clients is binomial: variance 5 * 2/7 * 5/7.
    sizes = torch.tensor([float(len(one.clients)) for one in rounds])
    assert sizes.var().item() == pytest.approx(5 * 2 / 7 * 5 / 7, rel=0.15)
    assert sizes.min() == 0
    assert {one.weights.sum().item() for one in rounds if not one.clients} == {0.0}


def test_odds() -> None:
    """One of five clients per round: alike, or in proportion to the images."""
    for sampling, odds in (("uniform", dict.fromkeys((0, 2, 3, 4, 6), 0.2)), ("volume", {0: 0.1, 2: 0.3, 3: 0.05})):
        drawn = Counter(cohort(round, per_round=1, sampling=sampling).clients[0] for round in range(1500))
        for client, odd in odds.items():
            assert drawn[client] / 1500 == pytest.approx(odd, abs=4 * (odd / 1500) ** 0.5)


def test_who_is_drawn_twice_counts_twice() -> None:
    drawn: Counter[int] = Counter()
    repeated = 0
    for number in range(1, 501):
        found = cohort(number, per_round=4, sampling="multinomial", weighting="uniform")
        assert len(set(found.clients)) == len(found.clients) <= 4
        times = (found.weights * 4).tolist()
        assert times == [round(share) for share in times]
        assert sum(times) == 4
        drawn.update(dict(zip(found.clients, map(int, times), strict=True)))
        repeated += len(found.clients) < 4
    assert repeated > 100
    for client, odd in {0: 0.1, 2: 0.3, 3: 0.05, 4: 0.2, 6: 0.35}.items():
        assert drawn[client] / 2000 == pytest.approx(odd, abs=4 * (odd / 2000) ** 0.5)


def test_with_multinomial_the_mean_weight_is_the_share_of_the_images() -> None:
    """Volumes 1 : 3 : 6, two draws a round; the weights that the config leaves open."""
    sizes, draws = [10, 30, 60], 4000
    total = torch.zeros(3, dtype=torch.float64)
    for number in range(draws):
        found = cohort(number, sizes=sizes, per_round=2, sampling="multinomial")
        total[list(found.clients)] += found.weights
    for mean, odd in zip((total / draws).tolist(), (0.1, 0.3, 0.6), strict=True):
        assert mean == pytest.approx(odd, abs=4 * (odd * (1 - odd) / (2 * draws)) ** 0.5)


@pytest.mark.parametrize(("per_round", "right"), [(1, (0.1, 0.3, 0.6)), (2, (41 / 280, 47 / 120, 97 / 210))])
def test_with_volume_the_mean_weight_is_that_of_draws_without_replacement(
    per_round: int, right: tuple[float, ...]
) -> None:
    """Two of three: a client is in with p_i + sum over j of p_j p_i / (1 - p_j), and its weight is then a half."""
    sizes, draws = [10, 30, 60], 4000
    total = torch.zeros(3, dtype=torch.float64)
    for number in range(draws):
        found = cohort(number, sizes=sizes, per_round=per_round, sampling="volume")
        assert found.weights.tolist() == [1 / per_round] * per_round
        total[list(found.clients)] += found.weights
    for mean, odd in zip((total / draws).tolist(), right, strict=True):
        inside = odd * per_round
        assert mean == pytest.approx(odd, abs=4 * (inside * (1 - inside) / draws) ** 0.5 / per_round)


@pytest.mark.parametrize("sampling", ["uniform", "volume", "multinomial"])
def test_the_default_weighting_counts_the_images_once(sampling: str) -> None:
    config = make_config(clients={"count": 3, "per_round": 2, "sampling": sampling}).clients
    assert config.weighting == ("samples" if sampling == "uniform" else "uniform")


@pytest.mark.parametrize("sampling", ["multinomial", "poisson", "uniform", "volume"])
def test_a_large_population_costs_some_bytes_for_each_and_is_drawn_as_a_list_is(sampling: str) -> None:
    sizes = np.random.default_rng(0).integers(0, 9, 200_000)
    as_array, found = array("q", sizes.tobytes()), []
    config = make_config(clients={"count": len(sizes), "per_round": 100, "sampling": sampling})
    for given in (sizes.tolist(), as_array):
        tracemalloc.start()
        try:
            found.append(draw_cohort(config.clients, config.train, given, 0, 1))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert found[0].clients == found[1].clients
    assert torch.equal(found[0].weights, found[1].weights)
    assert peak < 60 * len(sizes)


def test_nobody_has_images() -> None:
    with pytest.raises(UserError, match="no client with training images"):
        cohort(sizes=[0, 0])


@pytest.mark.parametrize(
    ("train", "size", "steps"),
    [({"epochs": 2}, 33, 6), ({"epochs": 1}, 1, 1), ({"epochs": 3}, 16, 3), ({"steps": 5, "epochs": None}, 1, 5)],
)
def test_local_steps(train: dict[str, Any], size: int, steps: int) -> None:
    assert num_local_steps(make_config(train=train).train, size) == steps


def test_blocks_cover_the_cohort_once() -> None:
    assert cohort().blocks(2) == [range(2), range(2, 4), range(4, 5)]
    assert cohort().blocks(9) == [range(5)]
