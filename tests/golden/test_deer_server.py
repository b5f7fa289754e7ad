"""Aggregation of LoRA's factors without noise against DEeR's released server (deer_server.npz, the cases without DP).

The release's own tolerance is 2e-7 against float64; ten times that for our float32. With DP: not before privacy.
"""

import pytest
import torch

from fedsim.algorithms import resolve
from fedsim.algorithms.base import ServerState
from fedsim.models.specs import Kind, ParamSpec
from tests.golden.aggregation import aggregate
from tests.golden.clip import below, load, load_words
from tests.helpers import facts_of, update_of

GOLDEN = load("deer_server")
METHODS = {"LoRA": "fedavg", "FFA-LoRA": "ffa_lora", "DEeR": "deer"}
PLAIN = {case["name"]: case for case in load_words("deer_server")["cases"] if not case["is_DP"]}
TOLERANCE = 2e-6


def kind_of(name: str) -> Kind | None:
    if name == "logit_scale":
        return "local"
    return "lora_a" if "linear_a" in name else "lora_b" if "linear_b" in name else None


@pytest.mark.parametrize("name", PLAIN)
def test_plain_mean_of_the_open_factors(name: str) -> None:
    case = PLAIN[name]
    central, clients = below(GOLDEN, "central_in/"), below(GOLDEN, f"clients_{case['clients']}/")
    specs = {n: ParamSpec(tuple(v.shape), kind) for n, v in central.items() if (kind := kind_of(n))}
    chosen = resolve(METHODS[case["method"]])
    method = chosen(chosen.Config(), facts_of(specs))
    opened = {f"lora_{letter}" for letter in case["open_ab"]}
    (phase,) = [phase for phase in method.phases(1) if phase.kinds & {"lora_a", "lora_b"} == opened]
    select = case["select"]
    weights = GOLDEN[f"size_weights_{case['size_weights']}"][select]
    after = {n: clients[n][select] for n, spec in specs.items() if spec.kind in phase.kinds}
    update = update_of(select, central, after, phase=phase, weights=weights / weights.sum())
    found = method.post_aggregate(ServerState(0, central), aggregate(method, update)).params
    expected = central | below(GOLDEN, f"{name}/out/")
    for n, value in expected.items():
        torch.testing.assert_close(found[n], value, rtol=0, atol=TOLERANCE, msg=lambda text, n=n: f"{n}: {text}")
    assert {n for n in central if not torch.equal(found[n], central[n])} == {n for n in after if n != "logit_scale"}
