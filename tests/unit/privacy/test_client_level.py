"""Client-level clipping and noise under several methods."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.algorithms.base import PARAMS, Aggregate, Payload, Phase, ServerState
from fedsim.config.privacy import ClientLevel
from fedsim.errors import UserError
from fedsim.models.specs import ParamSpec
from fedsim.privacy.client_level import BOUND, STEPS, ClientLevelLayer, Noise
from fedsim.privacy.messages import norms_of
from tests.helpers import facts_of, play, same_bits, simulate, update_of

SIZES = [8, 8, 8]
SPECS = {"x": ParamSpec((20, 50), "body"), "y": ParamSpec((30,), "body")}


def private(mechanism: dict[str, Any], multiplier: float, **sections: Any) -> Any:
    words = {"mechanism": {"name": "client", **mechanism}, "noise_multiplier": multiplier, "delta": 1e-5}
    return simulate(SIZES, 2, privacy=words | sections.pop("more", {}), train={"momentum": 0.0}, **sections)


def change(sim: Any) -> Tensor:
    start = sim.initial_state()
    end = play(sim, 1, start)[0]
    return torch.cat([(end.params[name] - start.params[name]).double().flatten() for name in start.params])


def layer(mechanism: dict[str, Any], noise: Noise) -> ClientLevelLayer:
    return ClientLevelLayer(facts_of(SPECS), 0, ClientLevel.model_validate({"name": "client", **mechanism}), noise)


def updates(scale: float, num_clients: int = 4) -> tuple[Any, Payload]:
    stream = torch.Generator().manual_seed(1)
    after = {n: scale * torch.randn(num_clients, *s.shape, generator=stream) for n, s in SPECS.items()}
    before = {name: torch.zeros(spec.shape) for name, spec in SPECS.items()}
    update = update_of(range(num_clients), before, after, weights=torch.full((num_clients,), 1 / num_clients).double())
    return update, Payload(mean={PARAMS: update.delta})


def equal(num_clients: int, multiplier: float) -> Noise:
    weights = torch.full((num_clients,), 1 / num_clients, dtype=torch.float64)
    return Noise(multiplier, weights, num_clients, num_clients)


STATE = ServerState(0, {name: torch.zeros(spec.shape) for name, spec in SPECS.items()})


def test_a_wide_bound_without_noise_changes_no_bit() -> None:
    plain = simulate(SIZES, 2, train={"momentum": 0.0})
    start = plain.initial_state()
    quiet = play(private({"bound": 1e6}, 0.0), 1, start)[0].params
    assert same_bits(quiet, play(plain, 1, start)[0].params)


@pytest.mark.parametrize("clipping", ["flat", "per_tensor"])
@pytest.mark.parametrize(("method", "num_phases"), [("fedprox", 1), ("deer", 2), ("fedbn", 1)])
def test_a_round_moves_no_further_than_the_bound(clipping: str, method: str, num_phases: int) -> None:
    moved = change(private({"bound": 1e-3, "clipping": {"name": clipping}}, 0.0, algorithm={"name": method}))
    # Parameters in float32 round what is added to them.
    assert 0 < moved.norm() <= num_phases * 1e-3 * (1 + 1e-4)


@pytest.mark.parametrize("clipping", ["flat", "per_tensor"])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e12])
def test_clipping_is_never_exceeded(clipping: str, scale: float) -> None:
    update, payload = updates(scale)
    clipped = layer({"bound": 0.3, "clipping": {"name": clipping}}, equal(4, 0.0)).pre_aggregate(STATE, update, payload)
    norms = norms_of(clipped.mean[PARAMS], 4)
    assert (norms.square().sum(1).sqrt() <= 0.3).all()
    if clipping == "per_tensor":
        assert (norms <= 0.3 / math.sqrt(2)).all()
    if scale < 1e-2:
        assert same_bits(clipped.mean[PARAMS], payload.mean[PARAMS])
    else:
        assert (norms.square().sum(1).sqrt() >= 0.3 * (1 - 1e-9)).all()


@pytest.mark.parametrize("kind", ["central", "distributed", "local"])
def test_the_released_sum_has_the_noise_that_is_claimed(kind: str) -> None:
    """Over 10,300 numbers in ten rounds; the sensitivity of a mean over four is a quarter of the bound."""
    multiplier, bound = 1.5, 0.2
    noisy = layer({"bound": bound, "noise": kind}, equal(4, multiplier))
    update, payload = updates(1e-12)
    draws = []
    for round in range(10):
        state = replace(STATE, round=round)
        sent = noisy.pre_aggregate(state, replace(update, round=round + 1), payload)
        sums = Aggregate(
            update.clients,
            {g: {n: v.mean(0) for n, v in part.items()} for g, part in sent.mean.items()},
            {g: {n: v.sum(0) for n, v in part.items()} for g, part in sent.total.items()},
        )
        _, released = noisy.post_aggregate(state, Phase(), sums)
        draws += [value.flatten() for value in released.mean[PARAMS].values()]
    found = torch.cat(draws)
    # Every client's own noise is one of four in the mean, of the bound's size.
    expected = multiplier * bound / (2 if kind == "local" else 4)
    assert found.std().item() == pytest.approx(expected, rel=0.03)
    assert abs(found.mean().item()) < 4 * expected / math.sqrt(len(found))


def test_noise_follows_the_largest_weight() -> None:
    weights = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64)
    uneven = layer({"bound": 0.2}, Noise(1.0, weights, 4, 4))
    lattice = uneven.lattice(STATE)
    assert lattice.step * lattice.deviation == pytest.approx(0.7 * 0.2)
    update, payload = updates(10.0)
    sent = uneven.pre_aggregate(STATE, update, payload).total[STEPS]
    norms = norms_of({name: value.double() * lattice.step for name, value in sent.items()}, 4).square().sum(1).sqrt()
    torch.testing.assert_close(norms, 0.2 * weights, rtol=1e-6, atol=0)


def test_rounds_are_the_same_again_and_not_alike() -> None:
    one, again = (change(private({"bound": 1e-6}, 1e3)) for _ in range(2))
    assert torch.equal(one, again)
    other = change(private({"bound": 1e-6}, 1e3, seed=1))
    assert not torch.equal(one, other)


def test_the_bound_follows_a_quantile() -> None:
    """Norms 1, 2, 3 and 4 at bound 2.5: half stay whole; with rate 1 and quantile 0.75 the bound grows by e^0.25."""
    clipping = {"name": "quantile", "quantile": 0.75, "rate": 1.0, "count_noise": 1e-6}
    adaptive = layer({"bound": 2.5, "clipping": clipping}, equal(4, 1e-7))
    before = {name: torch.zeros(spec.shape) for name, spec in SPECS.items()}
    after = {name: torch.zeros(4, *spec.shape) for name, spec in SPECS.items()}
    after["y"][:, 0] = torch.arange(1.0, 5.0)
    update = update_of(range(4), before, after, weights=torch.full((4,), 0.25).double())
    state = replace(STATE, layers=dict(adaptive.init_server()))
    sent = adaptive.pre_aggregate(state, update, Payload(mean={PARAMS: update.delta}))
    totals = {g: {n: v.sum(0) for n, v in part.items()} for g, part in sent.total.items()}
    state, released = adaptive.post_aggregate(state, Phase(), Aggregate(update.clients, total=totals))
    assert released.mean.keys() == {PARAMS}
    assert not released.total
    assert float(state.layers[BOUND]) == pytest.approx(2.5 * math.exp(0.25), rel=1e-4)
    assert released.mean[PARAMS]["y"][0].item() == pytest.approx((1 + 2 + 2.5 + 2.5) / 4, rel=1e-4)


def test_the_count_of_a_quantile_is_charged() -> None:
    clipping = {"name": "quantile", "count_noise": 2.0}
    adaptive = layer({"bound": 1.0, "clipping": clipping}, equal(4, 1.5))
    # 1/z^2 is shared by both releases; the count moves by one half for one client.
    assert adaptive.update_multiplier**-2 + (2 * 2.0) ** -2 == pytest.approx(1.5**-2)


def test_the_bound_is_saved_and_goes_on() -> None:
    clipping = {"name": "quantile", "count_noise": 0.5}
    sim = private({"bound": 1e-3, "clipping": clipping}, 0.5)
    whole = play(sim, 2)[0]
    half = play(sim, 1)[0]
    assert float(half.layers[BOUND]) != 1e-3
    assert same_bits(play(sim, 1, half)[0].layers, whole.layers)


@pytest.mark.parametrize("method", ["scaffold", "feddyn"])
def test_totals_are_clipped_with_the_means(method: str) -> None:
    """What a method adds up beside its means gets noise of the size that one client may have there."""
    sim = private({"bound": 1e-6}, 1.0, algorithm={"name": method})
    end = play(sim, 2)[0]
    assert all(torch.isfinite(value).all() for value in {**end.params, **end.extra}.values())


def test_totals_have_the_noise_of_one_whole_client() -> None:
    noisy = layer({"bound": 0.2}, equal(4, 1.5))
    update, _ = updates(1e-12)
    draws = []
    for round in range(10):
        state = replace(STATE, round=round)
        sent = noisy.pre_aggregate(state, update, Payload(total={"moved": update.delta}))
        sums = Aggregate(update.clients, total={STEPS: {n: v.sum(0) for n, v in sent.total[STEPS].items()}})
        draws += [value.flatten() for value in noisy.post_aggregate(state, Phase(), sums)[1].total["moved"].values()]
    assert torch.cat(draws).std().item() == pytest.approx(1.5 * 0.2, rel=0.03)


def test_a_method_that_gathers_is_refused() -> None:
    update, payload = updates(1.0)
    gathering = replace(payload, gather={"rows": {"x": torch.zeros(4, 1)}})
    with pytest.raises(UserError, match="privacy: found a method that gathers single clients' 'rows'"):
        layer({"bound": 1.0}, equal(4, 1.0)).pre_aggregate(STATE, update, gathering)


def test_a_count_that_costs_too_much_is_refused() -> None:
    clipping = {"name": "quantile", "count_noise": 1.0}
    with pytest.raises(UserError, match=r"count_noise: found 1, which costs more than a noise multiplier of 2 in all"):
        layer({"bound": 1.0, "clipping": clipping}, equal(4, 2.0))
