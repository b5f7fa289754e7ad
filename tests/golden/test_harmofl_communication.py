"""HarmoFL's aggregation against the released one (harmofl_amp.npz, case0/comm; harmofl_fedavg.npz).

Tolerance of the vectors: 2e-7; ours adds the rounding of the mean to float32.
"""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from algorithms.base import Aggregate, Phase, ServerState, Update
from algorithms.harmofl import HarmoFL
from comm import ExactSum
from fedsim.models.specs import AMPLITUDE, AMPLITUDE_IS_FIXED, Kind, ParamSpec
from tests.golden.clip import below, load

CLOSE = {"rtol": 1e-6, "atol": 2e-7}
COUNTER = "bn.num_batches_tracked"


def kind_of(name: str) -> Kind:
    return "buffer" if name.startswith("amplitude_norm.") or "running" in name or name == COUNTER else "body"


def communicate(server: Mapping[str, Tensor], clients: Mapping[str, Tensor], round: int = 1) -> dict[str, Tensor]:
    """The server's parameters after one round of clients (K, ...) of equal weight."""
    method = HarmoFL(HarmoFL.Config(), {n: ParamSpec(tuple(v.shape), kind_of(n)) for n, v in server.items()})
    numbers = tuple(range(len(next(iter(clients.values())))))
    weights = torch.full((len(numbers),), 1 / len(numbers), dtype=torch.float64)
    steps = torch.ones(len(numbers), dtype=torch.int64)
    update = Update(round, Phase(), numbers, weights, server, clients, [{} for _ in numbers], steps, 0.0)
    payload = method.pre_aggregate(update)
    total = ExactSum(len(numbers))
    total.add_mean(payload.mean, weights, numbers)
    aggregate = Aggregate(numbers, total.read(total.flat), {})
    return method.post_aggregate(ServerState(round - 1, dict(server)), aggregate).params


def with_target(server: dict[str, Tensor], clients: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Add what every model of HarmoFL has, where the vectors are about something else."""
    target = {AMPLITUDE: torch.zeros(1), AMPLITUDE_IS_FIXED: torch.tensor(False)}
    num_clients = len(next(iter(clients.values())))
    return server | target, clients | {n: v.expand(num_clients, *v.shape) for n, v in target.items()}


def test_targets_meet_once() -> None:
    golden = load("harmofl_amp")
    names = {"amp_norm.running_amp": AMPLITUDE, "lin.weight": "lin.weight", "lin.bias": "lin.bias"}
    clients = {
        ours: torch.stack([golden[f"case0/comm/client{client}_in/{theirs}"] for client in range(3)])
        for theirs, ours in names.items()
    }
    clients[AMPLITUDE_IS_FIXED] = torch.zeros(3, dtype=torch.bool)
    start = {name: torch.zeros_like(value[0]) for name, value in clients.items()}
    after = communicate(start, clients)
    for theirs, ours in names.items():
        torch.testing.assert_close(after[ours], golden[f"case0/comm/server_out/{theirs}"], **CLOSE)
    assert golden["case0/comm/fix_amp_after"].all()
    assert after[AMPLITUDE_IS_FIXED]
    assert after[AMPLITUDE_IS_FIXED].dtype == torch.bool
    again = communicate(after, clients, round=2)
    assert torch.equal(again[AMPLITUDE], after[AMPLITUDE])


@pytest.mark.parametrize("case", ["bn_without_counter", "bn_with_counter"])
def test_all_is_averaged_and_the_counter_no_crash(case: str) -> None:
    golden = load("harmofl_fedavg")
    server, clients = (below(golden, f"{case}/{who}_in/") for who in ("server", "clients"))
    if COUNTER in server:
        # The vectors' own is the clients' mean already.
        server[COUNTER] = torch.tensor(1)
    after = communicate(*with_target(server, clients))
    for name in server.keys() - {COUNTER}:
        # The released code stops at the counter; what comes behind it should have been the mean too.
        torch.testing.assert_close(after[name], clients[name].double().mean(0).float(), **CLOSE)
        if case == "bn_without_counter":
            torch.testing.assert_close(after[name], golden[f"{case}/server_out/{name}"], **CLOSE)
    if case == "bn_with_counter":
        assert clients[COUNTER].tolist() == [4, 8, 4, 4, 8]
        assert after[COUNTER].item() == 6
        assert after[COUNTER].dtype == torch.int64
