"""Asynchronous rounds: three clients by hand, the synchronous rounds that they contain, and which methods have them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim import server
from fedsim.algorithms.base import ServerState, Tensors
from fedsim.buffered import asynchronous
from fedsim.config.experiment import Config
from fedsim.errors import UserError
from fedsim.simulation import Simulation
from fedsim.storage.checkpoint import server_tensors
from tests.helpers import everything, furthest, make_config, play, same_bits, simulate, train_alone

#: Three clients that take 1, 2 and 4 seconds, see ``test_three_clients_by_hand``.
TRACE = "client,speed\n0,1\n1,0.5\n2,0.25\n"
HALF = 2**-0.5


def clock(folder: Path, **aggregation: Any) -> dict[str, Any]:
    path = folder / "trace.csv"
    path.write_text(TRACE)
    return {"example_seconds": 1 / 16, "trace": str(path), "aggregation": aggregation}


def change(sim: Simulation, client: int, state: ServerState) -> Tensors:
    """What a client learns from a state, float64."""
    return {name: value[0] for name, value in train_alone(sim, client, state).delta.items()}


def stepped(state: ServerState, *parts: tuple[float, Tensors]) -> ServerState:
    """The server's state after a step: the sum of some changes times factors."""
    params = {
        name: (value.double() + sum(factor * own[name] for factor, own in parts)).float()
        for name, value in state.params.items()
    }
    return ServerState(state.round + 1, params)


def test_three_clients_by_hand(tmp_path: Path) -> None:
    """Clients of 1, 2 and 4 seconds, a buffer of two.

    They leave at 0. At 2 the buffer has 0 and 1, which leave again. At 3 comes 0, at 4 come 2 and 1, of which 2 left
    first. The third buffer has 1, which has waited, and 0, which left at 4 and comes at 5.
    """
    sim = simulate([16, 16, 16], per_block=2, clock=clock(tmp_path, name="fedbuff", buffer_size=2))
    found, records = play(sim, 3)

    first = sim.initial_state()
    second = stepped(first, (0.5, change(sim, 0, first)), (0.5, change(sim, 1, first)))
    third = stepped(second, (0.5, change(sim, 0, second)), (0.5 * HALF, change(sim, 2, first)))
    fourth = stepped(third, (0.5 * HALF, change(sim, 1, second)), (0.5, change(sim, 0, third)))
    assert furthest(found.params, fourth.params)[0] < 1e-6

    clocks = [record.row["clock"] for record in records]
    assert [row["seconds"] for row in clocks] == [2.0, 4.0, 5.0]
    assert [row["staleness"]["max"] for row in clocks] == [0, 1, 1]
    # 2 left at 4 from the third state, and is on its way.
    assert list(found.older) == [2]
    assert furthest(found.older[2].params, third.params)[0] < 1e-6
    rows = records[1].client_rows
    assert {row["client"]: (row["staleness"], row["arrived"]) for row in rows} == {0: (0, 3.0), 2: (1, 4.0)}
    assert {row["client"]: row["weight"] for row in rows} == pytest.approx({0: 1 / (1 + HALF), 2: HALF / (1 + HALF)})


def test_fedasync_by_hand(tmp_path: Path) -> None:
    """Every arrival is a step: 0 at 1, then 0 and 1 at 2, of which 1 left first."""
    words = clock(tmp_path, name="fedasync", mixing=0.6, staleness={"name": "polynomial", "exponent": 1.0})
    sim = simulate([16, 16, 16], per_block=2, clock=words)
    found, records = play(sim, 3)
    assert [row["client"] for record in records for row in record.client_rows] == [0, 1, 0]
    assert [record.row["clock"]["staleness"]["max"] for record in records] == [0, 1, 1]

    def mixed(server: ServerState, start: ServerState, client: int, share: float) -> ServerState:
        own = change(sim, client, start)
        behind = {name: own[name] + start.params[name].double() - value for name, value in server.params.items()}
        return stepped(server, (share, behind))

    first = sim.initial_state()
    second = mixed(first, first, 0, 0.6)
    third = mixed(second, first, 1, 0.6 / 2)
    fourth = mixed(third, second, 0, 0.6 / 2)
    assert furthest(found.params, fourth.params)[0] < 1e-6


@pytest.mark.parametrize("name", ["fedadam", "fedavg", "fedbn", "fedsa_lora", "ffa_lora", "moon"])
def test_no_delay_and_a_full_cohort_give_the_synchronous_bits(name: str) -> None:
    words: dict[str, Any] = {"algorithm": {"name": name}, "clients": {"per_round": 3}}
    sizes, zero = [20, 9, 33, 14, 16], {"example_seconds": 0.0}
    plain = simulate(sizes, 2, **words)
    expected, records = play(plain, 3)
    for aggregation in ({"name": "fedbuff", "buffer_size": 3}, {"name": "synchronous"}):
        sim = simulate(sizes, 2, **words, clock={**zero, "aggregation": aggregation})
        state, rows = play(sim, 3)
        assert same_bits(everything(sim, state), everything(plain, expected))
        assert same_bits(server_tensors(state), server_tensors(expected))
        assert [row.row["train_loss"] for row in rows] == [row.row["train_loss"] for row in records]


@pytest.mark.parametrize(
    ("how", "factor"),
    [({"name": "fedbuff", "buffer_size": 2, "server_lr": 3.0}, 1.0), ({"name": "fedasync", "mixing": 0.6}, 0.6)],
)
def test_running_statistics_stay_between_the_servers_and_the_clients(
    how: dict[str, Any], factor: float, tmp_path: Path
) -> None:
    """The second round has an update that began from the first state, see above."""
    model = {**make_config().model.model_dump(mode="json"), "amplitude_norm": {}}
    sim = simulate([16, 16, 16], 2, clock=clock(tmp_path, **how), model=model)
    first = sim.initial_state()
    second, _ = play(sim, 1, first)
    third, (record,) = play(sim, 1, second)
    states = {0: second, 1: first}
    weights = {row["client"]: row["weight"] for row in record.client_rows}
    starts = {row["client"]: states[row["staleness"]] for row in record.client_rows}
    discount = {"fedbuff": 0.5 + 0.5 * HALF, "fedasync": HALF}[how["name"]]
    assert first in starts.values()
    statistics = [name for name, spec in sim.algorithm.specs.items() if spec.kind == "buffer"]
    assert any((third.params[name] != second.params[name]).any() for name in statistics)
    for name in statistics:
        now = second.params[name].double()
        means = [weights[own] * (start.params[name] + change(sim, own, start)[name]) for own, start in starts.items()]
        expected = now + factor * discount * (sum(means) - now)
        torch.testing.assert_close(third.params[name].double(), expected, rtol=1e-5, atol=1e-5)


def test_a_deadline_leaves_out_who_is_late(tmp_path: Path) -> None:
    """The third client takes four seconds, so the rounds are those of the other two."""
    sim = simulate([16, 16, 16], 2, clock=clock(tmp_path, name="synchronous", deadline_seconds=3.0))
    state, records = play(sim, 2)
    assert [record.row["clock"] for record in records] == [
        {"seconds": 3.0, "arrived": 2, "dropped": 0, "late": 1},
        {"seconds": 6.0, "arrived": 2, "dropped": 0, "late": 1},
    ]
    first = sim.initial_state()
    second = stepped(first, (0.5, change(sim, 0, first)), (0.5, change(sim, 1, first)))
    third = stepped(second, (0.5, change(sim, 0, second)), (0.5, change(sim, 1, second)))
    assert furthest(state.params, third.params)[0] < 1e-6


def test_a_round_in_which_nobody_arrives_changes_nothing(tmp_path: Path) -> None:
    words = clock(tmp_path, name="fedbuff", buffer_size=2)
    words |= {"trace": None, "devices": [{"name": "lost", "dropout": 1 - 1e-9}]}
    sim = simulate([16, 16, 16], 2, clock=words)
    state, records = play(sim, 2)
    assert (state.round, records[1].row["clock"]["dropped"]) == (2, 3)
    assert same_bits(state.params, sim.initial_state().params)


def test_fedasync_has_no_optimiser_on_the_server() -> None:
    words = {"example_seconds": 1.0, "aggregation": {"name": "fedasync", "mixing": 0.5}}
    sim = simulate([16, 16], 2, algorithm={"name": "fedadam"}, clock=words)
    with pytest.raises(UserError, match="mixes whole models"):
        asynchronous(sim)


def run_config(folder: Path) -> Config:
    """Seven clients of two speeds, some of whom drop; updates of several ages in a buffer."""
    devices = [
        {"name": "fast", "speed": 4.0, "up_mbps": 10.0},
        {"name": "slow", "speed": 0.3, "availability": 0.8, "dropout": 0.2},
    ]
    words = {"example_seconds": 0.1, "devices": devices, "aggregation": {"name": "fedbuff", "buffer_size": 2}}
    return make_config(
        name=folder.name,
        rounds=4,
        algorithm={"name": "fedsa_lora", "form": "paper"},
        data={"name": "digits", "image_size": 14, "max_train": 120},
        clients={"count": 7, "per_round": 5, "per_block": 2, "partition": {"name": "iid"}},
        clock=words,
    )


def test_a_killed_run_goes_on_with_the_clients_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(tmp_path)
    whole = server.run(config, tmp_path / "whole", resume=False)
    assert max(row["clock"]["staleness"]["max"] for row in rows_of(tmp_path / "whole")) > 0

    with monkeypatch.context() as patch:
        patch.setattr(server, "asynchronous", killed_in_round_three)
        with pytest.raises(RuntimeError, match="killed"):
            server.run(config, tmp_path / "killed", resume=False)
    saved = json.loads((tmp_path / "killed/checkpoints/round-000002/state.json").read_text())
    flights = saved["progress"]["clock"]["flights"]
    assert 0 < len(flights) <= 5
    assert {flight["round"] for flight in flights} <= {0, 1}

    again = server.run(config, tmp_path / "killed", resume=True)
    assert again == whole
    for table in ("metrics", "clients"):
        assert (tmp_path / f"killed/{table}.jsonl").read_bytes() == (tmp_path / f"whole/{table}.jsonl").read_bytes()


def test_a_run_goes_on_with_the_devices_that_it_began_with(tmp_path: Path) -> None:
    words = clock(tmp_path, name="fedbuff", buffer_size=2)
    data = {"name": "digits", "image_size": 14, "max_train": 60}
    config = make_config(rounds=1, data=data, clients={"count": 3, "partition": {"name": "iid"}}, clock=words)
    server.run(config, tmp_path / "run", resume=False)
    (tmp_path / "trace.csv").write_text(TRACE.replace("0.25", "0.3"))
    with pytest.raises(UserError, match="--resume: clock: found devices of sha256"):
        server.run(config, tmp_path / "run", resume=True)


def killed_in_round_three(sim: Simulation) -> Any:
    take_round = asynchronous(sim)

    def take(sim: Simulation, state: ServerState, *others: Any) -> ServerState:
        if state.round == 2:
            raise RuntimeError("killed")
        return take_round(sim, state, *others)

    return take


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("sections", "key", "message"),
    [
        ({"privacy": {"secure_aggregation": {}}}, "clock", "cohorts of which nobody is missing"),
        ({"clients": {"sampling": "poisson", "per_round": 2}}, "clients.sampling", "replaces one client by one"),
        ({"clock": {"aggregation": {"name": "fedbuff", "buffer_size": 5}}}, "buffer_size", "at most clients.count = 4"),
        ({"clock": {"aggregation": {"name": "synchronous", "over_selection": 2.0}}}, "over_selection", "no number"),
        (
            {
                "clients": {"sampling": "multinomial", "per_round": 2},
                "clock": {"aggregation": {"name": "synchronous", "over_selection": 1.5}},
            },
            "over_selection",
            "no number to exceed",
        ),
        ({"clock": {"trace": "a.csv", "devices": [{"name": "phone"}]}}, "trace", "one of them"),
        ({"clock": {"devices": [{"name": "phone"}, {"name": "phone"}]}}, "devices", "a name of its own"),
    ],
)
def test_words_that_do_not_fit_are_refused(sections: dict[str, Any], key: str, message: str) -> None:
    base = {"example_seconds": 1.0, "aggregation": {"name": "fedbuff", "buffer_size": 2}}
    sections = {"clients": {"count": 4}, **sections, "clock": {**base, **sections.get("clock", {})}}
    sections["clients"] = {"count": 4, **sections["clients"]}
    with pytest.raises(ValueError, match=message) as caught:
        make_config(**sections)
    assert key in str(caught.value)


def test_no_state_is_kept_longer_than_max_staleness() -> None:
    devices = [{"name": "fast", "speed": 50.0}, {"name": "slow", "share": 0.5}]
    how = {"name": "fedbuff", "buffer_size": 1, "max_staleness": 2}
    words = {"example_seconds": 1.0, "devices": devices, "aggregation": how}
    sim = simulate([16] * 6, 2, clients={"per_round": 4}, clock=words)
    state = sim.initial_state()
    kept = set()
    for _ in range(8):
        state, _ = play(sim, 1, state)
        kept |= {state.round - origin for origin in state.older}
        assert not any(older.older for older in state.older.values())
    assert kept == {1, 2}
