"""Whole runs with a mechanism: epsilon in the log, the budget, what is shown of single clients, the settled config."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsim.configure import load_config
from fedsim.errors import UserError
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


def test_what_only_a_simulation_sees_is_named_or_left_out(tmp_path: Path) -> None:
    shown, hidden = (
        private(tmp_path, f"noise_multiplier: 1.0, observe: {word}", word)[1] for word in ("true", "false")
    )
    assert shown[0]["simulation_only"] == ["train_loss", "client_steps", "diagnostics", "clients.jsonl"]
    assert shown[0]["train_loss"] is not None
    assert hidden[0]["train_loss"] is None
    assert "simulation_only" not in hidden[0]
    assert {"client_drift", "aggregation_deviation", "subspace_angle_b"} < shown[0]["diagnostics"]["train"].keys()
    assert hidden[0]["diagnostics"]["train"].keys() == {"below_grid"}
    assert (tmp_path / "true" / "clients.jsonl").read_text()
    assert not (tmp_path / "false" / "clients.jsonl").read_text()
    # Looking changes nothing.
    assert [row["val"] for row in shown] == [row["val"] for row in hidden]


def test_without_noise_there_is_no_epsilon(tmp_path: Path) -> None:
    results, rows = private(tmp_path, "noise_multiplier: 0.0", rounds=1)
    assert rows[0]["epsilon"] is None
    assert results["epsilon"] is None
