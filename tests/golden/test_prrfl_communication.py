"""Rounds of communication against PRR-FL's released code (prrfl_communication.npz): PFA, BatchNorm and the rest.

Its tolerance is 6e-8 against float64; ours allows for float32 and the grid of the exact sums.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms.base import TRAINED_KINDS, Aggregate, Phase, ServerState, Update
from algorithms.prrfl import DEPUTY, PRRFL
from comm import ExactSum
from fedsim.models.specs import Kind, ParamSpec
from tests.golden.clip import FOLDER, below, load

GOLDEN = load("prrfl_communication")
NUM_ROUNDS = int(GOLDEN["iters"])
CLIENTS = (0, 1, 2, 3)
TOLERANCE = 1e-6


def ours(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The release transforms by name, we by shape: an axis more keeps the classifier's weight from it."""
    return {name: value.unflatten(-2, (1, -1)) if name == "head.weight" else value for name, value in tensors.items()}


def kind_of(name: str) -> Kind:
    if ".bn." not in name:
        return "body"
    return "norm" if name.endswith(("weight", "bias")) else "buffer"


def make_method(server: dict[str, Tensor]) -> PRRFL:
    specs = {name: ParamSpec(tuple(value.shape), kind_of(name)) for name, value in server.items()}
    config = PRRFL.Config(form="released", low_freq_start=GOLDEN["l_rate"].item(), low_freq_end=0.95)
    return PRRFL(config, specs, NUM_ROUNDS)


def test_schedule() -> None:
    method = make_method({})
    found = [method.low_freq(round) for round in range(1, NUM_ROUNDS + 1)]
    np.testing.assert_allclose(found, GOLDEN["pfa_rate_schedule"], rtol=1e-12)


@pytest.mark.parametrize("case", ["equal", "unequal"])
def test_rounds(case: str) -> None:
    weights = GOLDEN[f"{case}/client_weights"]
    for place, iteration in enumerate(GOLDEN[f"{case}/a_iters"].tolist()):
        start = f"{case}/r{place}/"
        server, clients = (ours(below(GOLDEN, f"{start}{who}_in/")) for who in ("server", "clients"))
        method = make_method(server)
        with np.load(FOLDER / "prrfl_communication.npz") as file:
            assert set(file[f"{start}keys_of_else_branch"]) == set(method.averaged)

        # Both models of a client the same: the personal one is none of the communication's business.
        after = {name: torch.stack([value, value], dim=1) for name, value in clients.items()}
        states: list[dict[str, Tensor]] = [{} for _ in CLIENTS]
        phase = Phase(kinds=TRAINED_KINDS, models=2)
        payload = method.pre_aggregate(
            Update(iteration + 1, phase, CLIENTS, weights, server, after, states, torch.ones(4), 0.0)
        )
        total = ExactSum(len(CLIENTS))
        total.add_mean(payload.mean, weights, CLIENTS)
        total.add_sum(payload.total, CLIENTS)
        values = total.read(total.flat)
        aggregate = Aggregate(CLIENTS, {n: values[n] for n in payload.mean}, {n: values[n] for n in payload.total})
        state = method.post_aggregate(ServerState(iteration, server), aggregate)
        method.receive(state, states, aggregate)

        expected = ours(below(GOLDEN, f"{start}clients_out/"))
        for name, value in ours(below(GOLDEN, f"{start}server_out/")).items():
            found = torch.stack([state[DEPUTY + name] for state in states])
            torch.testing.assert_close(state.params[name], value, rtol=0, atol=TOLERANCE)
            torch.testing.assert_close(found, expected[name], rtol=0, atol=TOLERANCE)
            moved = not torch.equal(found, clients[name])
            assert moved == (kind_of(name) == "body"), name
