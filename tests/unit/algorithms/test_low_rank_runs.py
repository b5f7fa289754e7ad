"""Fed-SB, LA-LoRA and the methods of two pairs in the engine: what moves, what is sent, what the server's model is."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from fedsim.algorithms.parts.two_levels import OWN
from fedsim.errors import UserError
from fedsim.measure.global_model import global_model
from tests.helpers import LORA, TINY_VIT, play, record_phases, same_bits, simulate, train_alone

RANK, OWN_RANK = 3, 1
MODEL = {**TINY_VIT, "lora": {**LORA, "r": RANK}}
#: What could move a parameter that has no gradient.
RESTLESS = [
    {"momentum": 0.9, "weight_decay": 0.1},
    {"optimizer": "adamw", "lr": 1e-2, "momentum": 0.0, "weight_decay": 0.1},
]
TWO_PAIRS = ("med_duallora", "feddpa", "pf2lora")


def sizes_of(sim: Any) -> tuple[int, int]:
    """The numbers of all factors, and of the head."""
    sizes = {name: math.prod(spec.shape) for name, spec in sim.model.specs.items()}
    factors = sum(size for name, size in sizes.items() if "lora_" in name)
    return factors, sum(sizes.values()) - factors


@pytest.mark.parametrize("method", TWO_PAIRS)
def test_only_the_shared_ranks_travel(method: str) -> None:
    sim = simulate([20, 9], 2, algorithm={"name": method, "local_rank": OWN_RANK}, model=MODEL)
    start = sim.initial_state()
    end, records = play(sim, 2)
    factors, head = sizes_of(sim)
    bytes_up = 2 * 4 * (factors * (RANK - OWN_RANK) // RANK + head)
    for record in records:
        assert record.row["bytes_up"] == bytes_up
        assert record.row["bytes_down"] == bytes_up
        assert 1 <= record.row["diagnostics"]["train"]["effective_rank"] <= RANK - OWN_RANK
    kept = [sim.store.read(client) for client in (0, 1)]
    for name, value in end.params.items():
        if name.endswith("lora_a"):
            assert not torch.equal(value[:, :-OWN_RANK], start.params[name][:, :-OWN_RANK])
            assert torch.equal(value[:, -OWN_RANK:], start.params[name][:, -OWN_RANK:])
        if name.endswith("lora_b"):
            assert value[..., :-OWN_RANK].any()
            assert not value[..., -OWN_RANK:].any()
            # Each client has learned a pair of its own.
            assert all(own[f"{OWN}/{name}"].any() for own in kept)
            assert not torch.equal(*(own[f"{OWN}/{name}"] for own in kept))
    assert same_bits(global_model(sim, end).params, end.params)


@pytest.mark.parametrize("train", RESTLESS)
def test_the_shared_pair_trains_as_if_it_were_alone(train: dict[str, Any]) -> None:
    """FedDPA's server is that of FedAvg with the shared ranks alone and the same scaling, whatever decays."""
    lora = {**LORA, "r": RANK - OWN_RANK, "lora_alpha": 4 * (RANK - OWN_RANK) / RANK}
    two = simulate([20, 9], 2, algorithm={"name": "feddpa", "local_rank": OWN_RANK}, model=MODEL, train=train)
    one = simulate([20, 9], 2, model={**TINY_VIT, "lora": lora}, train=train)
    shared = two.algorithm.told(two.initial_state().params)
    start = one.initial_state()
    start.params.update({name: value.clone() for name, value in shared.items()})
    end, expected = play(two, 1)[0], play(one, 1, start)[0]
    for name, value in two.algorithm.told(end.params).items():
        torch.testing.assert_close(value, expected.params[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("train", RESTLESS)
def test_a_factor_that_waits_stands_still(train: dict[str, Any]) -> None:
    ends = []
    for num_steps in (1, 2, 3):
        words = {**train, "batch_size": 8, "steps": num_steps, "epochs": None}
        sim = simulate([40], 1, algorithm={"name": "la_lora"}, train=words)
        ends.append({name: value[0] for name, value in train_alone(sim, 0, sim.initial_state()).after.items()})
    start = sim.initial_state().params
    for name, first in start.items():
        moves = [not torch.equal(*pair) for pair in pairwise([first, *(end[name] for end in ends)])]
        expected = {"a": [False, True, False], "b": [True, False, True]}.get(name[-1] if "lora_" in name else "")
        assert moves == (expected or [True] * 3), name


@pytest.mark.parametrize("train", RESTLESS)
def test_only_the_core_moves(train: dict[str, Any]) -> None:
    sim = simulate([20, 9], 2, algorithm={"name": "fed_sb"}, model=MODEL, train=train)
    first = play(sim, 1)[0]
    phases = record_phases(sim)
    second, (record,) = play(sim, 1, first)
    factors, head = sizes_of(sim)
    layers = [name for name in second.params if name.endswith("lora_b")]
    slices = sum(len(second.params[name]) for name in layers)
    assert record.row["bytes_up"] == 2 * 4 * (slices * RANK**2 + head)
    assert record.row["bytes_down"] == 2 * 4 * (slices * RANK**2 + factors + head)
    for name in layers:
        a, basis = name.removesuffix("b") + "a", second.extra[f"basis/{name}"]
        assert torch.equal(first.params[a], second.params[a])
        assert torch.equal(first.extra[f"basis/{name}"], basis)
        for gram in (basis[:, 0].mT @ basis[:, 0], second.params[a] @ second.params[a].mT):
            torch.testing.assert_close(gram, torch.eye(RANK).expand_as(gram), rtol=0, atol=1e-6)
        assert torch.equal(second.params[name], (basis @ second.extra[f"core/{name}"])[:, 0])
        for after in phases[0]["after"].values():
            assert after[name][:, :RANK].any()
            assert not after[name][:, RANK:].any()
    # What a client is measured with is its own core between the bases.
    update = train_alone(sim, 0, first)
    own = sim.algorithm.client_params([{}], first.params, update)["own"]
    name = layers[0]
    expected = first.extra[f"basis/{name}"][:, 0] @ update.after[name][0, :, :RANK]
    torch.testing.assert_close(own[name][0], expected)


def test_what_ravan_sends() -> None:
    """The cores, and no scale: of a rank of 3 in 3 heads a number for each."""
    sim = simulate([20, 9], 2, algorithm={"name": "ravan", "heads": RANK}, model=MODEL)
    start = sim.initial_state()
    end, (record,) = play(sim, 1, start)
    factors, head = sizes_of(sim)
    slices = sum(len(value) for name, value in end.params.items() if name.endswith("lora_b"))
    assert record.row["bytes_up"] == 2 * 4 * (slices * RANK + head)
    assert record.row["bytes_down"] == 2 * 4 * (slices * RANK + factors + head)
    for name, value in end.params.items():
        assert torch.equal(value, start.params[name]) == name.endswith("lora_a")


def test_refusals() -> None:
    for method in ("fed_sb", "ravan", "la_lora", *TWO_PAIRS):
        with pytest.raises(UserError, match=r"model\.lora"):
            simulate([8], 1, algorithm={"name": method}, model={**TINY_VIT, "train": "head"})
    with pytest.raises(UserError, match=r"algorithm\.local_rank.*less than model\.lora\.r, 3"):
        simulate([8], 1, algorithm={"name": "feddpa", "local_rank": 3}, model=MODEL)
    with pytest.raises(UserError, match=r"model\.lora\.r.*33, more than the widths 32 and 32 of blocks\.0\.attn\.qkv"):
        simulate([8], 1, algorithm={"name": "fed_sb"}, model={**TINY_VIT, "lora": {**LORA, "r": 33}})
    with pytest.raises(UserError, match=r"algorithm\.heads.*a divisor of model\.lora\.r, 3"):
        simulate([8], 1, algorithm={"name": "ravan", "heads": 2}, model=MODEL)
    sim = simulate([8], 1, algorithm={"name": "fed_sb"})
    with pytest.raises(UserError, match="first round without clients"):
        sim.algorithm.begin(replace(sim.initial_state(), round=1), sim.algorithm.phases(2)[0], [])


@pytest.mark.parametrize("form", ["whitened", "released"])
def test_a_part_of_a_factor_has_no_regulated_noise(form: str) -> None:
    mechanism = {"name": "noise_regulator", "bound": 1.0, "form": form}
    privacy = {"mechanism": mechanism, "noise_multiplier": 1.0, "delta": 1e-5}
    words = {"algorithm": {"name": "med_duallora", "local_rank": OWN_RANK}, "model": MODEL}
    with pytest.raises(UserError, match=r"privacy\.mechanism.*sends a part of blocks\.0\.attn\.qkv\.lora_a"):
        play(simulate([20, 9], 2, **words, privacy=privacy), 1)
