"""DEeR's released server (deer_server.npz): it averages LoRA's factors, clipped and with the recorded noise.

The release's own tolerance is 2e-7 against float64; ten times that for our float32.
"""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.algorithms import resolve
from fedsim.algorithms.base import Algorithm, Phase, ServerState, Update
from fedsim.config.privacy import NoiseRegulator
from fedsim.errors import UserError
from fedsim.models.specs import Kind, ParamSpec
from fedsim.privacy.client_level import Noise
from fedsim.privacy.released_noise import ReleasedNoise
from tests.golden.aggregation import aggregate
from tests.golden.clip import below, load, load_words
from tests.helpers import facts_of, update_of

GOLDEN = load("deer_server")
# DP-DyLoRA's server does what LoRA's does.
METHODS = {"LoRA": "fedavg", "FFA-LoRA": "ffa_lora", "DEeR": "deer", "DP-DyLoRA": "fedavg"}
CASES = {case["name"]: case for case in load_words("deer_server")["cases"]}
RAISING = [name for name, case in CASES.items() if case["error"]]
KINDS: dict[str, Kind] = {"a": "lora_a", "b": "lora_b"}
TOLERANCE = 2e-6


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The release's matrices under our names, each a layer of one slice."""
    found = {}
    for name, value in tensors.items():
        match = re.fullmatch(r"(.+)\.linear_([ab])_([qkv])\.weight", name)
        found[f"{match[1]}.{match[3]}.lora_{match[2]}" if match else name] = value.unsqueeze(-3) if match else value
    return found


class Recorded(ReleasedNoise):
    """Has the recorded noise."""

    recorded: dict[str, Tensor]

    def draw(self, update: Update, name: str, shape: tuple[int, ...]) -> Tensor:
        found = self.recorded[name].double()
        assert found.shape == (len(update.clients), *shape)
        return found


def play(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], set[str]]:
    """The server's parameters before and after a case, and the names that clients trained."""
    case = CASES[name]
    central, clients = renamed(below(GOLDEN, "central_in/")), clients_of(case["clients"])
    specs = {n: ParamSpec(tuple(v.shape), kind) for n, v in central.items() if (kind := kind_of(n))}
    method, phase = open_phase(case["method"], {KINDS[letter] for letter in case["open_ab"]}, specs)
    select = case["select"]
    weights = GOLDEN[f"size_weights_{case['size_weights']}"][select]
    # What a phase does not open is a client's own in the file, and shapes its noise.
    after = {n: clients[n][select] for n, spec in specs.items() if spec.kind in phase.kinds}
    before = central | {n: clients[n][select] for n, spec in specs.items() if spec.kind not in phase.kinds}
    update = update_of(select, before, after, phase=phase, weights=weights / weights.sum())
    state = ServerState(0, central)
    layers = [recorded_layer(case, specs)] if case["is_DP"] else []
    return central, method.post_aggregate(state, aggregate(method, update, state, layers)).params, set(after)


def clients_of(name: str) -> dict[str, Tensor]:
    """The clients' matrices; ``b_zero`` has no entry: it is those with B as it starts."""
    if name != "b_zero":
        return renamed(below(GOLDEN, f"clients_{name}/"))
    free = renamed(below(GOLDEN, "clients_free/"))
    return {n: value * (kind_of(n) != "lora_b") for n, value in free.items()}


def kind_of(name: str) -> Kind | None:
    return "local" if name == "logit_scale" else KINDS[name[-1]] if "lora_" in name else None


def open_phase(name: str, opened: set[Kind], specs: dict[str, ParamSpec]) -> tuple[Algorithm, Phase]:
    """The method, and its phase with these factors; FedAvg where the method has no such phase."""
    for chosen in (resolve(METHODS[name]), resolve("fedavg")):
        method = chosen(chosen.Config(), facts_of(specs, num_clients=int(GOLDEN["node_num"])))
        for phase in method.phases(1):
            if phase.kinds & set(KINDS.values()) == opened:
                return method, phase
    return method, Phase(kinds=frozenset({*opened, "local"}))


def recorded_layer(case: dict[str, Any], specs: dict[str, ParamSpec]) -> Recorded:
    regulated = case["method"] == "DEeR" and bool(case["module2"])
    mechanism = NoiseRegulator(name="noise_regulator", form="released", bound=case["C"], regulated=regulated)
    num_clients = int(GOLDEN["node_num"])
    weights = torch.full((num_clients,), 1 / num_clients, dtype=torch.float64)
    noise = Noise(case["noise_multiplier"], weights, num_clients, num_clients)
    layer = Recorded(facts_of(specs, num_clients=num_clients), 0, mechanism, noise)
    layer.recorded = renamed(below(GOLDEN, f"{case['name']}/noise/"))
    if not case["error"]:
        assert layer.deviation == pytest.approx(GOLDEN[f"{case['name']}/noise_std"].item(), rel=1e-6)
    return layer


@pytest.mark.parametrize("name", sorted(CASES.keys() - set(RAISING)))
def test_the_open_factors(name: str) -> None:
    central, found, trained = play(name)
    expected = central | renamed(below(GOLDEN, f"{name}/out/"))
    for n, value in expected.items():
        torch.testing.assert_close(found[n], value, rtol=0, atol=TOLERANCE, msg=lambda text, n=n: f"{n}: {text}")
    assert {n for n in central if not torch.equal(found[n], central[n])} == trained - {"logit_scale"}


@pytest.mark.parametrize("name", RAISING)
def test_a_factor_without_an_inverse(name: str) -> None:
    """The release ends in an error of linear algebra there."""
    with pytest.raises(UserError, match=r"privacy.mechanism.form: found released with a .*\.lora_b without full rank"):
        play(name)
