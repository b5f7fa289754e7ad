"""Personalised methods: what stays with the clients, what the server makes of it, and what is counted as sent."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedsim.algorithms.base import Phase, keep, recall
from fedsim.algorithms.ditto import Ditto
from fedsim.algorithms.prrfl import DEPUTY, PERSONAL, PRRFL, is_transformed
from fedsim.measure.global_model import global_model
from fedsim.models.specs import ParamSpec
from fedsim.schedule.clock import Clock
from fedsim.simulation import Simulation
from tests.helpers import TINY_VIT, batch_of, facts_of, furthest, play, same_bits, simulate, train_alone, with_params

RESNET = {"name": "timm:test_resnet", "weights": "random", "train": "all"}
HEAD = {**TINY_VIT, "train": "head"}
STORED = {"shuffle": False, "batch_size": 8, "epochs": 2, "momentum": 0.0}
PRR = {"name": "prrfl", "decide_on": "train"}


def own(sim: Simulation, client: int, group: str = "own") -> dict[str, torch.Tensor]:
    state = sim.store.read(client)
    return {name.removeprefix(f"{group}/"): value for name, value in state.items() if name.startswith(f"{group}/")}


def test_recall_and_keep() -> None:
    states: list[dict[str, torch.Tensor]] = [{}, {"own/x": torch.tensor([5.0, 6.0])}]
    server = {"x": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    found = recall(states, "own", server)
    assert found["x"].tolist() == [[1, 2], [5, 6]]
    assert found["n"].tolist() == [3, 3]
    assert recall([], "own", server)["x"].shape == (0, 2)
    keep(states, "own", {"x": 10 * found["x"]})
    assert [state["own/x"].tolist() for state in states] == [[10, 20], [50, 60]]


def test_local_clients_are_alone() -> None:
    """Each ends where FedAvg with that client alone ends; nothing is sent; the server holds their mean."""
    sizes = [20, 9, 3]
    sim = simulate(sizes, 2, algorithm={"name": "local"}, model=HEAD, train=STORED)
    end, records = play(sim, 2)
    assert same_bits(end.params, sim.initial_state().params)
    assert records[0].row["bytes_up"] == records[0].row["bytes_down"] == 0
    assert records[0].row["diagnostics"]["train"] == {}
    models = []
    for client in range(3):
        alone = simulate(sizes, 2, model=HEAD, train=STORED)
        parts = alone.parts.where(np.arange(3) == client)
        alone = replace(alone, parts=parts, clock=Clock(alone.config, parts.sizes))
        models.append(own(sim, client))
        assert furthest(models[-1], play(alone, 2)[0].params) < (1e-5, "")
    mean = global_model(sim, end).params
    for name, value in mean.items():
        expected = sum(n / 32 * model[name].double() for n, model in zip(sizes, models, strict=True))
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_fedbn_keeps_batch_norm() -> None:
    sim = simulate([16, 8], 2, algorithm={"name": "fedbn"}, model=RESNET, train={"batch_size": 8})
    start = sim.initial_state()
    end, records = play(sim, 1)
    kept = {name for name, spec in sim.model.specs.items() if spec.kind in ("norm", "buffer")}
    assert any(name.endswith("bn1.weight") for name in kept)
    assert any(name.endswith("running_mean") for name in kept)
    for client in (0, 1):
        assert own(sim, client).keys() == kept
    for name, value in end.params.items():
        assert torch.equal(value, start.params[name]) == (name in kept), name
    sent = sum(math.prod(spec.shape) for name, spec in sim.model.specs.items() if name not in kept)
    assert records[0].row["bytes_up"] == records[0].row["bytes_down"] == 2 * 4 * sent

    # The second round starts from the server's convolutions and the client's own BatchNorm.
    begun = sim.algorithm.begin(end, sim.algorithm.phases(2)[0], [sim.store.read(1)]).params
    assert begun.keys() == kept
    assert all(torch.equal(begun[name][0], value) for name, value in own(sim, 1).items())
    assert not torch.equal(own(sim, 0)["net.bn1.running_mean"], own(sim, 1)["net.bn1.running_mean"])


def test_fedrep_by_hand() -> None:
    """One client: the head on the start's body, then the body under that head; the server keeps its own head."""
    sim = simulate([20], 1, algorithm={"name": "fedrep"}, train=STORED)
    start = sim.initial_state()
    end, _ = play(sim, 1)
    alone = simulate([20], 1, algorithm={"name": "fedrep"}, train=STORED)
    head_phase, body_phase = alone.algorithm.phases(1)
    head = {name: value[0] for name, value in train_alone(alone, 0, start, head_phase).after.items()}
    body = train_alone(alone, 0, with_params(start, head), body_phase)
    assert same_bits(own(sim, 0), head)
    assert set(body.after) == set(start.params) - set(head)
    for name, value in body.after.items():
        torch.testing.assert_close(end.params[name], value[0], rtol=0, atol=1e-7)
    assert all(torch.equal(end.params[name], start.params[name]) for name in head)
    assert set(global_model(sim, end).params) == set(start.params)
    torch.testing.assert_close(global_model(sim, end).params["head.weight"], head["head.weight"], rtol=0, atol=1e-7)


def test_ditto_between_alone_and_federated() -> None:
    ditto, local = (
        simulate([20, 9], 2, algorithm=words, model=HEAD, train=STORED)
        for words in ({"name": "ditto", "strength": 0.0}, {"name": "local"})
    )
    _, records = play(ditto, 2)
    play(local, 2)
    for client in (0, 1):
        assert same_bits(own(ditto, client), own(local, client))
    # Down: the server's model once, at the start of the round.
    numbers = sum(math.prod(spec.shape) for spec in ditto.model.specs.values())
    assert records[0].row["bytes_up"] == records[0].row["bytes_down"] == 2 * 4 * numbers


def test_ditto_term_by_hand() -> None:
    method = Ditto(Ditto.Config(strength=0.1), facts_of({"x": ParamSpec((2,), "head")}))
    for phase, distance in (("personal", 25.0), ("train", 0.0)):
        params, start = {"x": torch.tensor([[4.0, 6.0]])}, {"x": torch.tensor([1.0, 2.0])}
        places = {"targets": torch.zeros(1, 1, dtype=torch.int64), "weights": torch.ones(1, 1)}
        batch = batch_of(torch.zeros(1, 1, 4), params=params, trained=("x",), start=start, phase=Phase(phase), **places)
        assert method.loss(batch).tolist() == pytest.approx([math.log(4) + 0.05 * distance])


def test_what_prrfl_transforms() -> None:
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "conv": ((4, 3, 3, 3), "body"),
        "linear": ((4, 3), "body"),
        "head.weight": ((2, 4), "head"),
        "lora_a": ((3, 2, 8), "lora_a"),
        "bias": ((4,), "body"),
        "class token": ((1, 1, 8), "body"),
        "bn": ((4,), "norm"),
        "mean": ((4,), "buffer"),
    }
    found = {name for name, (shape, kind) in shapes.items() if is_transformed(ParamSpec(shape, kind))}
    assert found == {"conv", "linear", "head.weight", "lora_a"}


@pytest.mark.parametrize("form", ["paper", "released"])
def test_prrfl_round(form: str) -> None:
    """The communication changes the deputies' convolutions alone, the personal models keep what they learned."""
    sim = simulate([16, 8], 2, algorithm={**PRR, "form": form}, model=RESNET, train={"batch_size": 8})
    start = sim.initial_state()
    learned: dict[str, torch.Tensor] = {}
    receive = sim.algorithm.receive

    def noted(state: Any, states: Any, aggregate: Any) -> None:
        learned.update({name: value.clone() for name, value in states[1].items()})
        receive(state, states, aggregate)

    vars(sim.algorithm)["receive"] = noted
    end, records = play(sim, 1)
    kept = sim.store.read(1)
    assert kept.keys() == learned.keys()
    assert {name for name, value in kept.items() if not torch.equal(value, learned[name])} == {
        f"{DEPUTY}/{name}" for name, spec in sim.model.specs.items() if spec.kind not in ("norm", "buffer")
    }
    shared = "head.bias"
    assert torch.equal(kept[f"{DEPUTY}/{shared}"], end.params[shared])
    assert not torch.equal(end.params[shared], start.params[shared])
    assert not torch.equal(kept[f"{PERSONAL}/{shared}"], end.params[shared])
    row = records[0].row
    # Both clients are new, so the whole model comes down before the aggregate.
    whole = sum(value.nbytes for value in start.params.values())
    assert row["bytes_down"] == row["bytes_up"] + 2 * whole
    later = play(sim, 1, end)[1][0].row
    assert later["bytes_down"] == later["bytes_up"]
    full = 2 * 4 * sum(math.prod(s.shape) for s in sim.model.specs.values() if s.kind not in ("norm", "buffer"))
    # Floats are counted as float32, whatever the grid of the exact sum.
    assert row["bytes_up"] / full == pytest.approx(row["diagnostics"]["train"]["sent_per_weight"])


def test_prrfl_server_is_the_mean_of_the_deputies() -> None:
    sim = simulate([16, 8], 1, algorithm=PRR, model=RESNET, train={"batch_size": 8})
    end, _ = play(sim, 1)
    mean = global_model(sim, end).params
    deputies = [own(sim, client, DEPUTY) for client in (0, 1)]
    for name in (name for name in mean if not name.endswith("num_batches_tracked")):
        expected = 2 / 3 * deputies[0][name].double() + 1 / 3 * deputies[1][name].double()
        torch.testing.assert_close(mean[name].double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_share_of_frequencies_over_the_rounds(form: str) -> None:
    method = PRRFL(PRRFL.Config(form=form, low_freq_start=0.5, low_freq_end=0.9), facts_of({}, 4))
    steps = 3 if form == "paper" else 4
    assert [method.low_freq(round) for round in range(1, 5)] == pytest.approx([0.5 + 0.4 * t / steps for t in range(4)])
    alone = PRRFL(PRRFL.Config(form=form), facts_of({}, 1))
    assert alone.low_freq(1) == 0.7


def test_stages_must_be_in_order() -> None:
    with pytest.raises(ValidationError):
        PRRFL.Config(alpha1=0.9, alpha2=0.7)
