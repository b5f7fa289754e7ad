"""Whole runs with a mechanism: epsilon in the log, the budget, what is shown of single clients, the settled config."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsim.config.plain_yaml import flatten
from fedsim.configure import load_config
from fedsim.errors import UserError
from fedsim.runfolder.tracking import numbers_of
from fedsim.server import run
from tests.distributed.runs import write_config

MECHANISM = "mechanism: {name: client, bound: 0.1}, delta: 1.0e-3"


def private(folder: Path, words: str, out: str = "run", rounds: int = 3) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run it; return results and the rows of metrics.jsonl."""
    changes = ["algorithm.name=fedavg", f"rounds={rounds}", f"privacy={{{MECHANISM}, {words}}}"]
    results = run(load_config(write_config(folder), changes), folder / out, resume=False)
    lines = (folder / out / "metrics.jsonl").read_text().splitlines()
    return results, [json.loads(line) for line in lines]


def test_epsilon_grows_to_what_was_asked_for(tmp_path: Path) -> None:
    results, rows = private(tmp_path, "epsilon: 4.0")
    spent = [row["epsilon"] for row in rows]
    assert spent == sorted(spent)
    assert 0 < spent[0] < spent[-1] <= 4.0
    assert results["epsilon"] == spent[-1] == pytest.approx(4.0, rel=1e-3)
    # The config in the folder says what noise that took, and gives the same run.
    settled = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["privacy"]
    assert settled["epsilon"] == 4.0
    again = run(load_config(tmp_path / "run" / "config.yaml"), tmp_path / "again", resume=False)
    assert again["state_sha256"] == results["state_sha256"]
    with pytest.raises(UserError, match=r"privacy.noise_multiplier: found .*, with which epsilon is 4 after 3 rounds"):
        run(load_config(tmp_path / "run" / "config.yaml", ["privacy.epsilon=3.9"]), tmp_path / "less", resume=False)


def test_the_run_ends_before_its_budget_does(tmp_path: Path) -> None:
    _, rows = private(tmp_path, "noise_multiplier: 2.0")
    budget = (rows[1]["epsilon"] + rows[2]["epsilon"]) / 2
    results, short = private(tmp_path, f"noise_multiplier: 2.0, budget: {budget}", "short")
    assert results["status"] == "stopped early"
    assert [row["epsilon"] for row in short] == [row["epsilon"] for row in rows[:2]]
    assert short[-1]["val"] is not None
    with pytest.raises(
        UserError, match=r"privacy.budget: found 0.1; expected at least .*, what the first round spends"
    ):
        private(tmp_path, "noise_multiplier: 2.0, budget: 0.1", "none")


def test_the_last_round_that_a_budget_leaves_measures_the_clients_too(tmp_path: Path) -> None:
    _, rows = private(tmp_path, "noise_multiplier: 2.0", rounds=5)
    budget = (rows[2]["epsilon"] + rows[3]["epsilon"]) / 2
    words = f"privacy={{{MECHANISM}, noise_multiplier: 2.0, budget: {budget}}}"
    changes = ["algorithm.name=fedavg", "rounds=5", words, "evaluate={every: 2, clients: true}"]
    run(load_config(write_config(tmp_path), changes), tmp_path / "short", resume=False)
    short = [json.loads(line) for line in (tmp_path / "short" / "metrics.jsonl").read_text().splitlines()]
    assert [row["val"] is not None for row in short] == [False, True, True]
    assert ["clients" in row["diagnostics"] for row in short] == [False, True, True]
    assert all(row["diagnostics"]["train"]["subspace_angle_b"] is not None for row in short[1:])


def test_what_only_a_simulation_sees_is_named_or_left_out(tmp_path: Path) -> None:
    shown, hidden = (
        private(tmp_path, f"noise_multiplier: 1.0, observe: {word}", word)[1] for word in ("true", "false")
    )
    columns = ["train_loss", "bytes_up", "bytes_down", "client_steps", "diagnostics"]
    assert shown[0]["simulation_only"] == [*columns, "clients.jsonl", "timings.jsonl"]
    assert shown[0]["train_loss"] is not None
    assert hidden[0]["train_loss"] is None
    assert "simulation_only" not in hidden[0]
    assert {"client_drift", "aggregation_deviation", "subspace_angle_b"} < shown[0]["diagnostics"]["train"].keys()
    assert hidden[0]["diagnostics"] == {"train": {}}
    assert (tmp_path / "true" / "clients.jsonl").read_text()
    assert not (tmp_path / "false" / "clients.jsonl").read_text()
    # Looking changes nothing.
    assert [row["val"] for row in shown] == [row["val"] for row in hidden]


def test_who_takes_part_is_hidden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rounds of nobody, of one client and of several, whose messages differ in size, look the same."""
    poisson = ["clients.sampling=poisson", "clients.per_round=2", "clients.weighting=uniform", "seed=10", "rounds=5"]
    ranks = ["model.lora.r=4", "model.lora.ranks=[2, 2, 2, 2, 2, 2, 4]", "algorithm.name=fedavg"]
    found = {}
    for word in ("true", "false"):
        privacy = f"privacy={{{MECHANISM}, noise_multiplier: 1.0, observe: {word}}}"
        config = load_config(write_config(tmp_path), [*poisson, *ranks, privacy])
        run(config, tmp_path / word, resume=False)
        folder, said = tmp_path / word, capsys.readouterr().out
        tables = [(folder / f"{name}.jsonl").read_text().splitlines() for name in ("metrics", "timings")]
        rows, timings = ([json.loads(line) for line in lines] for lines in tables)
        messages = (folder / "messages.log").read_text()
        digests = json.loads((folder / "partition.json").read_text())["sha256"]
        found[word] = rows, timings, said, messages, digests

    rows, timings, said, messages, digests = found["true"]
    cohorts = [tuple(timing["phases"][0]["train_seconds_per_client"]) for timing in timings]
    assert [len(cohort) for cohort in cohorts] == [3, 0, 1, 2, 2]
    assert len({row["bytes_up"] for row in rows}) > 2
    assert " bytes up, " in said
    assert "a step in one batch is each client's own" in messages
    assert "cohorts" in digests

    rows, timings, said, messages, digests = found["false"]
    assert {row[key] for row in rows for key in ("bytes_up", "bytes_down", "client_steps", "train_loss")} == {None}
    assert len({tuple(flatten(row, ".")) for row in rows}) == 1
    assert {name.partition("/")[0] for row in rows for name in numbers_of(row)} == {"val", "test", "epsilon"}
    # How long a round took is there, the evaluation's share too.
    clocks = {"seconds", "evaluation_seconds"}
    alike = {"phases": [{"name": "train"}], "wire_bytes_sent": None, "wire_bytes_received": None}
    for number, timing in enumerate(timings, start=1):
        assert {key: value for key, value in timing.items() if key not in clocks} == {"round": number, **alike}
    assert " bytes" not in said
    assert "each client's own" not in messages
    assert "cohorts" not in digests
    assert [row["val"] for row in rows] == [row["val"] for row in found["true"][0]]


def test_without_noise_there_is_no_epsilon(tmp_path: Path) -> None:
    results, rows = private(tmp_path, "noise_multiplier: 0.0", rounds=1)
    assert rows[0]["epsilon"] is None
    assert results["epsilon"] is None
