"""DEeR's noise regulator, whitened: its law, its sensitivity, and factors without an inverse."""

import pytest
import torch

from fedsim.algorithms.base import PARAMS, Aggregate, Payload, Phase, ServerState
from fedsim.config.privacy import ClientLevel, NoiseRegulator
from fedsim.errors import UserError
from fedsim.models.specs import ParamSpec
from fedsim.privacy.client_level import STEPS, Noise
from fedsim.privacy.messages import norms_of
from fedsim.privacy.noise_regulator import WhitenedRegulator
from fedsim.privacy.released_noise import SPENT, ReleasedNoise
from tests.helpers import facts_of, play, simulate, update_of

G, R, D, O = 2, 3, 40, 30  # noqa: E741 - the shapes of LoRA factors
SPECS = {"x.lora_a": ParamSpec((G, R, D), "lora_a"), "x.lora_b": ParamSpec((G, O, R), "lora_b")}
NOISE = Noise(1.0, torch.full((5,), 0.2, dtype=torch.float64), 5, 5)
STREAM = torch.Generator().manual_seed(2)
FACTORS = {name: torch.randn(spec.shape, generator=STREAM) for name, spec in SPECS.items()}


def whitened(bound: float, noise: Noise = NOISE) -> WhitenedRegulator:
    return WhitenedRegulator(facts_of(SPECS), 0, ClientLevel(name="client", bound=bound), noise)


def sums(payload: Payload, clients: tuple[int, ...]) -> Aggregate:
    totals = {g: {n: v.sum(0) for n, v in part.items()} for g, part in payload.total.items()}
    means = {g: {n: v.mean(0) for n, v in part.items()} for g, part in payload.mean.items()}
    return Aggregate(clients, means, totals)


def product(name: str, change: torch.Tensor) -> torch.Tensor:
    """What the change of one factor does to B A."""
    a, b = FACTORS["x.lora_a"].double(), FACTORS["x.lora_b"].double()
    return b @ change if name.endswith("a") else change @ a


@pytest.mark.parametrize("name", SPECS)
def test_the_noise_is_the_regulators(name: str) -> None:
    """Noise on one factor moves the product by a projection of white noise of the stated deviation, and of its rank."""
    layer, state = whitened(0.5), ServerState(0, FACTORS)
    zero = torch.zeros(5, *SPECS[name].shape, dtype=torch.float64)
    update = update_of(range(5), FACTORS, {name: FACTORS[name].expand_as(zero)})
    sent = layer.pre_aggregate(state, update, Payload(mean={PARAMS: {name: zero}}))
    squares = 0.0
    for round in range(40):
        _, released = layer.post_aggregate(ServerState(round, FACTORS), Phase(), sums(sent, update.clients))
        squares += product(name, released.mean[PARAMS][name]).square().sum().item()
    white = (0.5 * 0.2) ** 2  # z C / 5 squared
    numbers = G * R * (D if name.endswith("a") else O)
    assert squares / 40 == pytest.approx(white * numbers, rel=0.05)


@pytest.mark.parametrize("name", SPECS)
def test_a_clients_change_of_the_product_stays_within_the_bound(name: str) -> None:
    layer, state = whitened(0.5), ServerState(0, FACTORS)
    delta = torch.randn(5, *SPECS[name].shape, generator=STREAM).double()
    update = update_of(range(5), FACTORS, {name: FACTORS[name] + delta.float()})
    sent = layer.pre_aggregate(state, update, Payload(mean={PARAMS: {name: delta}})).total[STEPS]
    lattice = layer.lattice(state)
    steps = {key: value.double() * lattice.step for key, value in sent.items()}
    assert norms_of(steps, 5).amax().item() == pytest.approx(0.5 * 0.2, rel=1e-6)
    # Turned back, the product moves by as much, client by client.
    (back,) = layer.from_noisy(state, steps).values()
    moved = torch.stack([product(name, own).norm() for own in back])
    torch.testing.assert_close(moved, torch.full((5,), 0.1).double(), rtol=1e-6, atol=0)


def test_what_the_peer_does_not_let_through_is_left_out() -> None:
    """B has one zero column, so one row of A moves no product: it gets neither change nor noise."""
    factors = {**FACTORS, "x.lora_b": FACTORS["x.lora_b"].clone()}
    factors["x.lora_b"][..., 1] = 0
    layer, state = whitened(10.0), ServerState(0, factors)
    delta = torch.ones(5, *SPECS["x.lora_a"].shape, dtype=torch.float64) * 1e-3
    update = update_of(range(5), factors, {"x.lora_a": factors["x.lora_a"] + delta.float()})
    sent = layer.pre_aggregate(state, update, Payload(mean={PARAMS: {"x.lora_a": delta}}))
    _, released = layer.post_aggregate(state, Phase(), sums(sent, update.clients))
    found = released.mean[PARAMS]["x.lora_a"]
    assert found[:, 1].abs().max() < 1e-12
    assert (found[:, [0, 2]].abs().amax((1, 2)) > 0).all()


@pytest.mark.parametrize("method", ["fedsa_lora", "sfed_lora"])
def test_a_method_whose_clients_keep_b_is_refused(method: str) -> None:
    """The server's B stays zero, so that noise on A would have no shape, and A would never move."""
    words = {"mechanism": {"name": "noise_regulator", "bound": 0.1}, "noise_multiplier": 0.1, "delta": 1e-5}
    sim = simulate([8, 8, 8], 2, algorithm={"name": method}, privacy=words)
    with pytest.raises(UserError, match=r"noise_regulator with a .*lora_b that stays zero on the server"):
        play(sim, 2)


def test_deer_starts_with_b_at_zero() -> None:
    """The first phase trains B, shaped by A; with B at zero nothing of A could be released."""
    words = {"mechanism": {"name": "noise_regulator", "bound": 0.1}, "noise_multiplier": 0.1, "delta": 1e-5}
    sim = simulate([8, 8, 8], 2, algorithm={"name": "deer"}, privacy=words)
    start = sim.initial_state()
    end = play(sim, 1, start)[0]
    assert all(torch.isfinite(value).all() for value in end.params.values())
    assert any(not torch.equal(end.params[name], start.params[name]) for name in end.params if name.endswith("lora_a"))


def test_the_released_form_names_the_factor_without_an_inverse() -> None:
    words = {"name": "noise_regulator", "bound": 0.1, "form": "released"}
    layer = ReleasedNoise(facts_of(SPECS, num_clients=5), 0, NoiseRegulator.model_validate(words), NOISE)
    factors = {**FACTORS, "x.lora_b": torch.zeros(SPECS["x.lora_b"].shape)}
    delta = torch.ones(5, *SPECS["x.lora_a"].shape, dtype=torch.float64)
    update = update_of(range(5), factors, {"x.lora_a": factors["x.lora_a"] + delta.float()})
    with pytest.raises(UserError, match=r"privacy.mechanism.form: found released with a x.lora_b without full rank"):
        layer.pre_aggregate(ServerState(0, factors), update, Payload(mean={PARAMS: {"x.lora_a": delta}}))


def test_what_the_released_form_spends() -> None:
    """Plain noise on G matrices: each may be as long as C, so that the sum's multiplier is z over their root."""
    words = {"name": "noise_regulator", "bound": 0.1, "form": "released", "regulated": False}
    layer = ReleasedNoise(facts_of(SPECS, num_clients=5), 0, NoiseRegulator.model_validate(words), NOISE)
    state = ServerState(0, FACTORS, layers=dict(layer.init_server()))
    means = {PARAMS: {"x.lora_b": torch.zeros(SPECS["x.lora_b"].shape)}}
    for phases in (1, 2):
        state, _ = layer.post_aggregate(state, Phase(), Aggregate(tuple(range(5)), means))
        assert state.layers[SPENT].item() == pytest.approx(phases * G / 1.0**2)
    shaped = ReleasedNoise(
        facts_of(SPECS, num_clients=5), 0, NoiseRegulator(name="noise_regulator", bound=0.1, form="released"), NOISE
    )
    state, _ = shaped.post_aggregate(
        ServerState(0, FACTORS, layers=dict(layer.init_server())), Phase(), Aggregate(tuple(range(5)), means)
    )
    largest = torch.linalg.svdvals(FACTORS["x.lora_a"].double())[:, 0]
    assert state.layers[SPENT].item() == pytest.approx(largest.square().sum().item())
    state, _ = shaped.post_aggregate(state, Phase(), Aggregate(tuple(range(5)), {PARAMS: FACTORS}))
    assert state.layers[SPENT].item() == float("inf")
