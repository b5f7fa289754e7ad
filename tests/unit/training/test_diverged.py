"""A client whose training diverged is left out of the round, counted and named; with too many the run ends."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedsim.errors import UserError
from fedsim.simulation import Simulation
from fedsim.training.diverged import require_few
from tests.helpers import (
    BY_PRODUCTS,
    everything,
    furthest,
    make_config,
    make_dataset,
    make_simulation,
    play,
    simulate,
)
from tests.submodels import tiny_submodel

SIZES = [20, 9, 14, 17, 5]
BROKEN = 2


def break_client(sim: Simulation, value: float = math.nan, client: int = BROKEN, first_round: int = 1) -> list[Any]:
    """Let a number of what a client has trained be ``value``; return a list of what the clients bring back."""
    train, updates = sim.trainer.train, []

    def broken(clients: Any, cohort: Any, state: Any, *rest: Any) -> Any:
        update, losses = train(clients, cohort, state, *rest)
        if client in clients and state.round + 1 >= first_round:
            after = {name: tensor.clone() for name, tensor in update.after.items()}
            after[min(after)][clients.index(client)].view(-1)[-1] = value
            update = replace(update, after=after)
        updates.append(update)
        return update, losses

    vars(sim.trainer)["train"] = broken
    return updates


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e7])
@pytest.mark.parametrize("per_block", [1, 3])
def test_the_mean_is_that_of_the_others(value: float, per_block: int) -> None:
    sim = simulate(SIZES, per_block, clients={"max_diverged": 0.2})
    before, updates = sim.initial_state(), break_client(sim, value)
    after, (record,) = play(sim, 1, before)
    total = sum(SIZES) - SIZES[BROKEN]
    for name, start in before.params.items():
        expected = start.double()
        for update in updates:
            for row, client in enumerate(update.clients):
                if client != BROKEN:
                    expected = expected + SIZES[client] / total * update.delta[name][row]
        torch.testing.assert_close(after.params[name].double(), expected, rtol=1e-6, atol=1e-7)
    assert record.row["diverged"] == 1
    assert math.isfinite(record.row["train_loss"])
    told = {row["client"]: row for row in record.client_rows}
    assert told[BROKEN]["diverged"] is True
    assert told[BROKEN]["train_loss"] is None
    assert not any("diverged" in row for client, row in told.items() if client != BROKEN)


@pytest.mark.parametrize("method", sorted({"fedavg", "scaffold", "fednova", "prrfl", *BY_PRODUCTS}))
def test_the_server_goes_on_as_if_nobody_had_drawn_it(method: str) -> None:
    """Also where the server has the clients' own rows, and adds them up with weights itself."""
    ends = []
    for is_there in (True, False):
        dataset, parts = make_dataset(SIZES)
        parts[BROKEN] = parts[BROKEN] if is_there else parts[BROKEN][:0]
        clients = {"count": len(SIZES), "per_block": 2, "max_diverged": 0.2}
        sim = make_simulation(make_config(algorithm={"name": method}, clients=clients), dataset, parts)
        break_client(sim)
        state, _ = play(sim, 1)
        ends.append({**state.params, **state.extra})
    assert furthest(ends[0], ends[1]) < (1e-6, "")


@pytest.mark.parametrize("method", ["fedrep", "scaffold", "deer", "fedadam", "harmofl", "moon", "prrfl"])
def test_what_a_client_keeps_is_what_it_kept_before(method: str) -> None:
    words: dict[str, Any] = {"algorithm": {"name": method}, "clients": {"max_diverged": 0.2}}
    words["train"] = {"keep_optimizer": True, "epochs": 1}
    if method == "harmofl":
        words["model"] = {**make_config().model.model_dump(mode="json"), "amplitude_norm": {}}
    # PRR-FL's client alone in its block, of which nobody is left then.
    sim = simulate(SIZES, 1 if method == "prrfl" else 2, **words)
    state, _ = play(sim, 1)
    before = everything(sim, state)
    break_client(sim, first_round=2)
    state, _ = play(sim, 1, state)
    after = everything(sim, state)
    kept = [name for name in before if name.startswith(f"{BROKEN}/")]
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert all(torch.isfinite(value).all() for value in after.values())
    state, (record,) = play(sim, 1, state)
    assert record.row["diverged"] == 1, "in how many phases ever"


def test_its_scores_are_none_before_the_communication() -> None:
    sim = simulate(SIZES, 2, clients={"max_diverged": 0.2}, evaluate={"clients": True})
    break_client(sim)
    _, (record,) = play(sim, 1)
    rows = {row["client"]: row for row in record.client_rows}
    assert all(math.isnan(value) for value in rows[BROKEN]["own"]["before"]["val"].values())
    own = record.row["diagnostics"]["clients"]["val"]
    assert all(spread["after"]["clients"] >= spread["before"]["clients"] for spread in own.values())


def test_with_more_than_the_share_the_run_ends() -> None:
    sim = simulate(SIZES, 2, clients={"max_diverged": 0.19})
    break_client(sim)
    with pytest.raises(UserError, match=r"clients.max_diverged: found 1 of 5 clients that diverged, such as client 2"):
        play(sim, 1)


def test_a_share_is_not_rounded() -> None:
    """0.29 * 100 is a little below 29."""
    is_out = torch.arange(100) < 29
    assert require_few(range(100), is_out, 0.29) == tuple(range(29))
    with pytest.raises(UserError, match="found 29 of 100"):
        require_few(range(100), is_out, 0.2899)


def test_without_the_key_the_line_names_client_and_tensor() -> None:
    sim = simulate(SIZES, 2)
    break_client(sim)
    with pytest.raises(UserError, match=r"client 2, tensor params/.*did the training diverge\?"):
        play(sim, 1)


def test_a_share_that_nobody_needs_changes_no_bit() -> None:
    (plain, _), (tolerant, _) = (play(simulate(SIZES, 2, clients=words), 2) for words in ({}, {"max_diverged": 0.5}))
    assert all(torch.equal(plain.params[name], tolerant.params[name]) for name in plain.params)


def test_a_client_that_is_read_alone_may_not_be_left_out() -> None:
    pft = {"name": "fedpft", "form": "released", "distill": {"epochs": 1.0, "batch_size": 8, "micro_batch": 3}}
    model = {**make_config().model.model_dump(mode="json"), "submodel": {"folder": tiny_submodel(48)}}
    with pytest.raises(UserError, match=r"max_diverged: found 0\.2, and fedpft reads the last client's adapter"):
        simulate(SIZES, 2, algorithm=pft, model=model, clients={"max_diverged": 0.2})


def test_privacy_and_left_out_clients_do_not_go_together() -> None:
    privacy = {"mechanism": {"name": "client", "bound": 1.0}, "noise_multiplier": 1.0, "delta": 1e-5}
    with pytest.raises(ValueError, match="max_diverged"):
        make_config(clients={"max_diverged": 0.1}, privacy=privacy)
