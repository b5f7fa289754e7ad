"""Rounds of communication against PRR-FL's released code (prrfl_communication.npz): PFA, BatchNorm and the rest.

Its tolerance is 6e-8 against float64; ours allows for float32 and the grid of the exact sums.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.algorithms.base import Phase, ServerState
from fedsim.algorithms.prrfl import DEPUTY, PRRFL
from fedsim.models.specs import Kind, ParamSpec
from tests.golden.aggregation import aggregate
from tests.golden.clip import below, load, load_words
from tests.helpers import facts_of, update_of

GOLDEN, WORDS = load("prrfl_communication"), load_words("prrfl_communication")
NUM_ROUNDS = int(GOLDEN["iters"])
TOLERANCE = 1e-6


def ours(tensors: dict[str, Tensor], averaged: list[str]) -> dict[str, Tensor]:
    """The release transforms by name, we by shape: an axis more keeps a matrix from it that is to be averaged."""
    kept = {name for name in averaged if name.endswith("weight")}
    return {name: value[..., None] if name in kept else value for name, value in tensors.items()}


def kind_of(name: str) -> Kind:
    if "bn" not in name:
        return "body"
    return "norm" if name.endswith(("weight", "bias")) else "buffer"


def make_method(server: dict[str, Tensor]) -> PRRFL:
    specs = {name: ParamSpec(tuple(value.shape), kind_of(name)) for name, value in server.items()}
    config = PRRFL.Config(form="released", low_freq_start=GOLDEN["l_rate"].item(), low_freq_end=0.95)
    return PRRFL(config, facts_of(specs, NUM_ROUNDS))


def test_schedule() -> None:
    method = make_method({})
    found = [method.low_freq(round) for round in range(1, NUM_ROUNDS + 1)]
    np.testing.assert_allclose(found, GOLDEN["pfa_rate_schedule"], rtol=1e-12)


@pytest.mark.parametrize("case", ["equal", "unequal"])
def test_rounds(case: str) -> None:
    weights = GOLDEN[f"{case}/client_weights"]
    for place, iteration in enumerate(GOLDEN[f"{case}/a_iters"].tolist()):
        start = f"{case}/r{place}/"
        averaged = WORDS[f"{start}keys_of_else_branch"]
        server, clients = (ours(below(GOLDEN, f"{start}{who}_in/"), averaged) for who in ("server", "clients"))
        method = make_method(server)
        assert set(averaged) == set(method.averaged)

        # Both models of a client the same: the personal one is none of the communication's business.
        after = {name: torch.stack([value, value], dim=1) for name, value in clients.items()}
        states: list[dict[str, Tensor]] = [{} for _ in weights]
        words = {"round": iteration + 1, "phase": Phase(models=2), "weights": weights, "kept": states}
        update = update_of(range(len(weights)), server, after, **words)
        total = aggregate(method, update)
        state = method.post_aggregate(ServerState(iteration, server), total)
        method.receive(state, states, total)

        expected = ours(below(GOLDEN, f"{start}clients_out/"), averaged)
        for name, value in ours(below(GOLDEN, f"{start}server_out/"), averaged).items():
            found = torch.stack([state[f"{DEPUTY}/{name}"] for state in states])
            torch.testing.assert_close(state.params[name], value, rtol=0, atol=TOLERANCE)
            torch.testing.assert_close(found, expected[name], rtol=0, atol=TOLERANCE)
            if kind_of(name) != "body":
                assert torch.equal(found, clients[name]), name
