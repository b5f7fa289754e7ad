"""HarmoFL's aggregation against the released one (harmofl_amp.npz, case0/comm; harmofl_fedavg.npz).

Tolerance of the vectors: 2e-7; ours adds the rounding of the mean to float32.
"""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from fedsim.algorithms.base import ServerState
from fedsim.algorithms.harmofl import HarmoFL
from fedsim.models.specs import AMPLITUDE, AMPLITUDE_IS_FIXED, Kind, ParamSpec
from tests.golden.aggregation import aggregate
from tests.golden.clip import below, load, load_words, tags
from tests.helpers import facts_of, update_of

CLOSE = {"rtol": 1e-6, "atol": 2e-7}
COUNTER = "num_batches_tracked"
# Ours in the place of the release's.
TARGETS = {"amp_norm.running_amp": AMPLITUDE}


def kind_of(name: str) -> Kind:
    return "buffer" if name.startswith("amplitude_norm.") or "running" in name or name.endswith(COUNTER) else "body"


def communicate(server: Mapping[str, Tensor], clients: Mapping[str, Tensor], round: int = 1) -> dict[str, Tensor]:
    """The server's parameters after one round of clients (K, ...) of equal weight."""
    method = HarmoFL(HarmoFL.Config(), facts_of({n: ParamSpec(tuple(v.shape), kind_of(n)) for n, v in server.items()}))
    numbers = tuple(range(len(next(iter(clients.values())))))
    update = update_of(numbers, server, clients, round=round)
    return method.post_aggregate(ServerState(round - 1, dict(server)), aggregate(method, update)).params


def with_target(server: dict[str, Tensor], clients: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Add what every model of HarmoFL has, where the vectors are about something else."""
    target = {AMPLITUDE: torch.zeros(1), AMPLITUDE_IS_FIXED: torch.tensor(False)}
    num_clients = len(next(iter(clients.values())))
    return server | target, clients | {n: v.expand(num_clients, *v.shape) for n, v in target.items()}


def test_targets_meet_once() -> None:
    golden = load("harmofl_amp")
    (case,) = tags(golden, r"(case\d+)/comm/")
    numbers = tags(golden, rf"{case}/comm/client(\d+)_in/")
    names = {name: TARGETS.get(name, name) for name in tags(golden, rf"{case}/comm/server_out/(.+)")}
    clients = {
        ours: torch.stack([golden[f"{case}/comm/client{number}_in/{theirs}"] for number in numbers])
        for theirs, ours in names.items()
    }
    clients[AMPLITUDE_IS_FIXED] = torch.zeros(len(numbers), dtype=torch.bool)
    start = {name: torch.zeros_like(value[0]) for name, value in clients.items()}
    after = communicate(start, clients)
    for theirs, ours in names.items():
        torch.testing.assert_close(after[ours], golden[f"{case}/comm/server_out/{theirs}"], **CLOSE)
    assert golden[f"{case}/comm/fix_amp_after"].all()
    assert after[AMPLITUDE_IS_FIXED]
    assert after[AMPLITUDE_IS_FIXED].dtype == torch.bool
    again = communicate(after, clients, round=2)
    assert torch.equal(again[AMPLITUDE], after[AMPLITUDE])


@pytest.mark.parametrize("case", ["bn_without_counter", "bn_with_counter"])
def test_all_is_averaged_and_the_counter_no_crash(case: str) -> None:
    """The released code stops at the counter; what comes behind it should have been the mean too."""
    golden, words = load("harmofl_fedavg"), load_words("harmofl_fedavg")
    server, clients, server_out, clients_out = (
        below(golden, f"{case}/{who}/") for who in ("server_in", "clients_in", "server_out", "clients_out")
    )
    order = words[f"{case}/key_order"]
    counters = [name for name in order if name.endswith(COUNTER)]
    for name in counters:
        # The vectors' own is the clients' mean already.
        server[name] = torch.tensor(1)
    after = communicate(*with_target(server, clients))
    assert any(words[f"{case}/error"]) == (case == "bn_with_counter") == bool(counters)
    reached = order[: order.index(counters[0])] if counters else order
    for name in reached:
        torch.testing.assert_close(after[name], server_out[name], **CLOSE)
        torch.testing.assert_close(after[name].expand_as(clients_out[name]), clients_out[name], **CLOSE)
    for name in set(order) - set(reached):
        mean = clients[name].double().mean(0)
        if name in counters:
            assert after[name].dtype == torch.int64
            assert abs(after[name].item() - mean.item()) < 0.5 + 1e-6
        else:
            torch.testing.assert_close(after[name], mean.float(), **CLOSE)
