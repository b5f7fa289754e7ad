"""What ``launch.py check`` says, on a job whose numbers are known."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedsim.build import build_simulation
from fedsim.comm.group import open_group
from fedsim.runfolder.partition import describe_partition, notes
from fedsim.schedule.cohort import draw_cohort
from fedsim.verbs import check as plan
from fedsim.verbs import trial
from tests.helpers import TINY_VIT, make_config, make_dataset, make_simulation, same_bits


@pytest.mark.parametrize(("method", "phases"), [("fedavg", ["train"]), ("deer", ["b", "a"])])
def test_plan(method: str, phases: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [40, 0, 3]
    dataset, parts = make_dataset(sizes)
    config = make_config(algorithm={"name": method}, clients={"count": 3, "per_block": 1})
    sim = make_simulation(config, dataset, parts)
    monkeypatch.setattr(plan, "build_simulation", lambda *_: sim)
    rows = dict(plan.describe(config))
    assert rows["data"].endswith("43 train, 12 val, 12 test images")
    assert rows["classes"] == "class 0, class 1, class 2"
    assert rows["clients"] == "3, of 0 to 40 images, 1 without"
    assert rows["near-duplicates"].startswith("0 of 12 val images have one in train; 0 of 12 test images")
    assert rows["same pixels"].endswith("0 pictures in two classes")
    assert rows["cohort"] == "2 clients in 2 blocks of up to 1"
    assert rows["local steps"] == "1 to 3 per client and phase"
    # Two blocks, three slices, rank 2, width 32: as many numbers in A as in B.
    factor, head = 2 * 3 * 2 * 32, 3 * 32 + 3
    each = head + (2 * factor if method == "fedavg" else factor)
    for phase in phases:
        assert rows[f"phase {phase}"] == f"{each:,} parameters trained, {4 * each:,} bytes sent per client"
    assert rows["seconds per round"].startswith("about ")
    assert rows["whole run"].endswith("at most one rank per block")
    assert float(rows["memory"].partition(" GiB")[0]) > 0.05
    assert rows["bytes per round"] == f"{len(phases) * each * 4 * 2:,} up, as float32"


def test_the_plan_tells_classes_apart_and_shows_remarks(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, parts = make_dataset([4, 4], num_classes=2)
    dataset = replace(dataset, class_names=("malignant", "normal, benign"), remarks=("one", "two"))
    sim = make_simulation(make_config(clients={"count": 2, "per_block": 1}), dataset, parts)
    monkeypatch.setattr(plan, "build_simulation", lambda *_: sim)
    rows = plan.describe(sim.config)
    assert dict(rows)["classes"] == 'malignant, "normal, benign"'
    assert rows[1:3] == [("remark", "one"), ("remark", "two")]


def test_texts_are_called_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, parts = make_dataset([4, 4])
    sim = make_simulation(make_config(clients={"count": 2, "per_block": 1}), dataset, parts)
    words = replace(dataset, texts=(("a text",),) * len(dataset.labels))
    monkeypatch.setattr(plan, "build_simulation", lambda *_: replace(sim, dataset=words))
    rows = dict(plan.describe(sim.config))
    assert rows["data"].endswith("8 train, 12 val, 12 test texts")
    assert rows["clients"] == "2, of 4 to 4 texts, 0 without"


def test_what_was_drawn_and_who_was_left_out_is_told(tmp_path: Path) -> None:
    dataset, parts = make_dataset([40, 0, 3])
    words = {"count": 3, "per_block": 1}
    config = make_config(clients={**words, "min_samples": 2})
    sim = make_simulation(config, replace(dataset, drawn=("val", "test")), parts)
    assert notes(sim) == [
        ("split", "val and test drawn from the training images"),
        ("left out", "1 of 3 clients with fewer than 2 images: 1"),
    ]
    said: list[str] = []
    describe_partition(sim, SimpleNamespace(folder=tmp_path, message=said.append))  # type: ignore[arg-type]  # stands in
    assert said == [": ".join(row) for row in notes(sim)]
    assert notes(make_simulation(make_config(clients=words), dataset, parts)) == []


def test_patients_in_two_splits_are_told_when_a_run_starts(tmp_path: Path) -> None:
    dataset, parts = make_dataset([40])
    groups = np.arange(len(dataset.labels))
    groups[dataset.test[:3]] = groups[dataset.train[:3]]
    sim = make_simulation(make_config(clients={"count": 1, "per_block": 1}), replace(dataset, groups=groups), parts)
    said: list[str] = []
    describe_partition(sim, SimpleNamespace(folder=tmp_path, message=said.append))  # type: ignore[arg-type]  # stands in
    shared = "0 of 12 val images have one in train; 3 of 12 test images have one in train"
    assert said == [f"warning: same groups: {shared}; 0 of 12 test images have one in val"]


@pytest.mark.parametrize(
    "sections",
    [
        {"algorithm": {"name": "fedrep"}},
        {"algorithm": {"name": "prrfl"}, "evaluate": {"clients": True}},
        {"algorithm": {"name": "fedavg"}, "train": {"keep_optimizer": True}, "model": {**TINY_VIT, "train": "all"}},
        {"privacy": {"mechanism": {"name": "record", "bound": 0.5}, "noise_multiplier": 1.0, "delta": 1e-3}},
    ],
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_trial_leaves_no_trace(sections: dict[str, Any]) -> None:
    dataset, parts = make_dataset([20, 6])
    sim = make_simulation(make_config(clients={"count": 2, "per_block": 2}, **sections), dataset, parts)
    state = sim.initial_state()
    before = {name: value.clone() for name, value in state.params.items()}
    cohort = draw_cohort(sim.config.clients, sim.config.train, sim.sizes, sim.config.seed, 1)
    rows = dict(trial.trial_rows(sim, state, cohort))
    assert rows.keys() == {"seconds per round", "whole run", "memory"}
    assert same_bits(state.params, before)
    assert not list(sim.store.sizes())


@pytest.mark.parametrize(("clients", "evaluation"), [(False, "2"), (True, "6")])
def test_a_round_takes_each_clients_own_steps(monkeypatch: pytest.MonkeyPatch, clients: bool, evaluation: str) -> None:
    """20 and 6 images in batches of 8 are 3 steps and 1, in one block of both."""
    dataset, parts = make_dataset([20, 6])
    config = make_config(
        clients={"count": 2, "per_block": 2}, train={"batch_size": 8, "epochs": 1}, evaluate={"clients": clients}
    )
    sim = make_simulation(config, dataset, parts)
    cohort = draw_cohort(sim.config.clients, sim.config.train, sim.sizes, sim.config.seed, 1)
    monkeypatch.setattr(trial, "step_seconds", lambda *_: 0.5)
    monkeypatch.setattr(trial, "evaluation_seconds", lambda *_: 2.0)
    found = dict(trial.trial_rows(sim, sim.initial_state(), cohort))["seconds per round"]
    assert found == f"about 2 of training and {evaluation} of evaluation, by one rank here"


@pytest.mark.parametrize("form", ["paper", "released"])
def test_an_evaluation_that_its_batches_change_is_told(form: str) -> None:
    options = {"init_features": 4, "growth_rate": 2, "block_config": [1, 1], "form": form}
    model = {"name": "fedsim:harmofl_densenet121", "weights": "random", "train": "all", "options": options}
    config = make_config(model=model, data={"image_size": 32}, evaluate={"batch_size": 9})
    with open_group() as group:
        found = notes(build_simulation(config, group))
    told = "the network normalises over batches of 9 images: scores depend on evaluate.batch_size"
    assert [row for row in found if row[0] == "warning"] == ([("warning", told)] if form == "released" else [])
