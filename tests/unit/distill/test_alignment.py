"""The alignment in its place in the round, in the paper's form, on a small sub-model."""

from typing import Any

import pytest
import torch

from fedsim.algorithms.base import Aggregate, ServerState
from fedsim.algorithms.parts.abilities import Alignment
from fedsim.measure.scores import evaluate
from fedsim.simulation import Simulation
from tests.helpers import LORA, TINY_VIT, play, simulate
from tests.submodels import tiny_submodel

STEPS = {"epochs": 4.0, "batch_size": 6, "micro_batch": 4, "lr": 0.003}


def fedpft(rounds: int = 3, **settings: Any) -> Simulation:
    return simulate(
        [20, 6],
        2,
        rounds=rounds,
        algorithm={"name": "fedpft", "distill": STEPS, **settings},
        model={**TINY_VIT, "lora": LORA, "submodel": {"folder": tiny_submodel(48)}},
    )


def watch(sim: Simulation) -> list[tuple[ServerState, Alignment]]:
    """Note the server's state before each alignment, and what was asked for."""
    seen = []
    align = sim.algorithm.align

    def watched(state: ServerState, aggregate: Aggregate, seed: int) -> Alignment:
        seen.append((state, align(state, aggregate, seed)))
        return seen[-1][1]

    vars(sim.algorithm)["align"] = watched
    return seen


def test_only_the_chosen_elements_change_and_the_error_falls() -> None:
    sim = fedpft()
    seen = watch(sim)
    after, (record,) = play(sim, 1)
    ((before, wanted),) = seen
    for name, value in after.params.items():
        stays = ~wanted.trained[name] if name in wanted.trained else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(value[stays], before.params[name][stays])
        assert stays.all() or not torch.equal(value, before.params[name])
    assert any(mask.any() and not mask.all() for mask in wanted.trained.values())
    assert evaluate(sim, after.params) == evaluate(sim, before.params), "the full model has nothing of the sub-model's"
    found = record.row["diagnostics"]["alignment"]
    assert found["steps"] == 8
    assert found["last_loss"] < found["first_loss"]
    assert record.timing["alignment_seconds"] > 0


@pytest.mark.parametrize(
    ("settings", "rounds_aligned"),
    [
        ({}, [1, 2]),
        ({"form": "released"}, [1, 2, 3]),
        ({"align_interval": 2}, [2]),
        ({"align_interval": None, "distill": {}}, []),
    ],
)
def test_rounds_that_align(settings: dict[str, Any], rounds_aligned: list[int]) -> None:
    _, records = play(fedpft(**settings), 3)
    assert [r.row["round"] for r in records if "alignment" in r.row["diagnostics"]] == rounds_aligned
    assert [r.row["round"] for r in records if "apoz" in r.row["diagnostics"]["train"]] == rounds_aligned


def test_clients_go_on_with_the_aligned_sub_model() -> None:
    """The next round trains on it: without the alignment it would end elsewhere."""
    aligned, plain = (play(fedpft(align_interval=interval), 2)[0] for interval in (1, 2))
    assert not torch.equal(aligned.params["head.weight"], plain.params["head.weight"])
