"""Tables of runs that are not as a careful reader would have them: a seed is missing, commits differ, few seeds."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedsim.results.comparing import Wish
from fedsim.results.page.content import verdict
from fedsim.results.tables import markdown, shown
from tests.unit.results.test_comparing import CLEAR, one_table, write_run, write_runs

ON_GPU = {"device": "cuda:0", "hardware": {"gpus": ["H200"]}}


def test_whoever_has_all_seeds_is_not_bold_where_another_is_better(tmp_path: Path) -> None:
    """A cell that failed takes the better method out of the running, and does not make the worse one the best."""
    scores = {**CLEAR, "deer": CLEAR["deer"][:4]}
    table = one_table(write_runs(tmp_path, scores))
    assert (table.best, table.holds) == ("fedavg", False)
    text = markdown([shown(table, Wish())])
    assert "| deer | 4 | 0.805 ± 0.017 | +0.300 [" in text
    assert "**0" not in text
    assert verdict(table).endswith("Better over shared seeds: deer.")
    losses = one_table(write_runs(tmp_path / "loss", scores), metrics=["loss"])
    assert (losses.best, losses.holds) == ("fedavg", False)


def test_two_seeds_show_nothing(tmp_path: Path) -> None:
    """Two differences may be as alike as chance will have it."""
    table = one_table(write_runs(tmp_path, {"fedavg": [0.5, 0.52], "deer": [0.8, 0.82001]}))
    assert not table.holds
    assert "2 seeds: too few for a difference to mean anything" in table.notes
    shared = one_table(write_runs(tmp_path / "shared", {"fedavg": [0.5, 0.6, 0.7], "deer": [0.8, 0.82]}))
    assert "2 seeds: too few for a difference to mean anything" in shared.notes


def test_an_epsilon_s_noise_is_no_contender_s_own(tmp_path: Path) -> None:
    """Beside runs without privacy, too."""
    runs = write_runs(tmp_path / "open", {"fedavg": [0.7, 0.8, 0.75]}, privacy=None)
    for seed, score in enumerate([0.5, 0.6, 0.52]):
        privacy = {"epsilon": 8.0, "noise_multiplier": 1.1 + seed / 10}
        runs.append(write_run(tmp_path / f"private_{seed}", "fedavg", seed, [score], privacy=privacy))
    assert one_table(runs).numbers["seeds"].tolist() == [3, 3]


def test_runs_of_two_commits_are_told(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, {"fedavg": [0.5, 0.6, 0.7]})
    for run, commit in zip(runs, "aab", strict=True):
        (run / "environment.json").write_text(json.dumps({"git": {"commit": commit}}))
    assert "runs are of 2 commits of fedsim" in one_table(runs).notes


@pytest.mark.parametrize(
    ("facts", "note"),
    [
        ([ON_GPU, {**ON_GPU, "device": "cpu"}], "runs are of 2 kinds of device"),
        ([ON_GPU, {**ON_GPU, "hardware": {"gpus": ["A100"]}}], "runs are of 2 kinds of device"),
        ([{"threads_per_rank": 1}, {"threads_per_rank": 8}], "runs are of 2 numbers of threads per rank"),
        ([{"frozen_sha256": "a"}, {"frozen_sha256": "b"}], "runs with one seed have other frozen weights"),
    ],
)
def test_what_else_changes_bits_is_told(facts: list[dict[str, Any]], note: str, tmp_path: Path) -> None:
    runs = write_runs(tmp_path, {"fedavg": [0.5], "deer": [0.6]})
    for run, own in zip(runs, facts, strict=True):
        (run / "environment.json").write_text(json.dumps(own))
    assert note in one_table(runs).notes
    (runs[1] / "environment.json").write_text(json.dumps(facts[0]))
    assert note not in one_table(runs).notes


def test_batches_of_evaluation_that_differ_are_told(tmp_path: Path) -> None:
    """They tell no contenders apart, and without running statistics they change scores."""
    runs = [
        write_run(tmp_path / f"{seed}_{size}", "fedavg", seed, [0.5], evaluate={"batch_size": size})
        for seed, size in enumerate((64, 8))
    ]
    table = one_table(runs)
    assert list(table.scores.columns) == ["fedavg"]
    assert [note for note in table.notes if note.startswith("runs are of 2 values of evaluate.batch_size")]
    assert not any("batch_size" in note for note in one_table(runs[:1]).notes)


def test_frozen_weights_may_follow_the_seed(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, {"fedavg": [0.5, 0.6]})
    for run, digest in zip(runs, "ab", strict=True):
        (run / "environment.json").write_text(json.dumps({"frozen_sha256": digest}))
    assert not any("frozen" in note for note in one_table(runs).notes)


def test_runs_with_a_clock_have_no_cohorts_in_common(tmp_path: Path) -> None:
    """Who arrives is part of what is compared."""
    runs = [write_run(tmp_path / "deadline", "fedavg", 0, [0.5], digests={"cohorts": None})]
    runs.append(write_run(tmp_path / "whole", "deer", 0, [0.5]))
    assert len(one_table(runs).scores.columns) == 2


def listed(folder: Path, runs: dict[str, str]) -> Path:
    """A sweep of runs with these names in its list."""
    cells = [{"name": run, "contender": name, "changes": {"name": name}} for run, name in runs.items()]
    empty: dict[str, Any] = {"per": [], "trials": [], "by": None, "chosen": {}, "diverged": []}
    (folder / "sweep.json").write_text(json.dumps({"schema": 2, "cells": cells, **empty}))
    return folder


def test_a_contender_is_called_as_in_the_sweep_s_list(tmp_path: Path) -> None:
    for name, method, lr in (("fedit", "fedavg", 1), ("slow", "fedavg", 2), ("deer", "deer", 1)):
        write_run(tmp_path / name, method, 0, [0.5], train={"lr": lr})
    table = one_table([listed(tmp_path, {name: name for name in ("fedit", "slow", "deer")})])
    assert list(table.scores.columns) == ["fedit", "slow", "deer"]
    assert "contenders differ in train.lr too" in table.notes
    alone = write_run(tmp_path / "elsewhere", "fedit", 0, [0.5], train={"lr": 1})
    mixed = list(one_table([tmp_path, alone]).scores.columns)
    assert mixed == ["fedit, algorithm.name=fedavg", "slow", "deer", "fedit, algorithm.name=fedit"]


def test_a_name_for_several_methods_is_no_contender_s(tmp_path: Path) -> None:
    for method in ("fedavg", "deer"):
        write_run(tmp_path / method, method, 0, [0.5])
    assert list(one_table([listed(tmp_path, dict.fromkeys(("fedavg", "deer"), "epsilon8"))]).scores.columns) == [
        "fedavg",
        "deer",
    ]
