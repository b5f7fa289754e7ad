"""Run folders as tables, without torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import UserError
from fedsim.results import load
from fedsim.results.comparing import Wish, compare
from tests.unit.results.test_comparing import write_run, write_runs

ROOT = Path(__file__).resolve().parents[3]


def test_three_runs_are_read_without_torch(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, {"fedavg": [0.5, 0.6, 0.7]})
    program = (
        "import sys, time; started = time.perf_counter(); from fedsim import results\n"
        f"found = results.load(*{[str(run) for run in runs]})\n"
        "print(time.perf_counter() - started, len(found.runs), len(found.rounds))\n"
        "sys.exit('torch' in sys.modules or 'fedsim.comm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    seconds, num_runs, num_rounds = done.stdout.split()
    print(f"three runs, imports included: {float(seconds):.2f} s")
    assert (num_runs, num_rounds) == ("3", "6")


def test_columns(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "deer", 3, [0.5, 0.7], train={"lr": 0.1, "betas": [0.9, 0.99]})
    line = {"round": 1, "phase": "b", "client": 2, "n": 9, "own": {"f1": 0.5}}
    (run / "clients.jsonl").write_text(json.dumps(line) + "\n" + '{"torn')
    found = load(run)
    own = found.runs.iloc[0]
    assert (own["run"], own["status"], own["config.algorithm.name"], own["config.seed"]) == ("a", "finished", "deer", 3)
    assert own["config.train.betas"] == [0.9, 0.99]
    assert (own["test.accuracy"], own["rounds"], own["sha256.clients"]) == (0.7, 2, "c")
    assert found.rounds["val.accuracy"].tolist() == [0.5, 0.7]
    assert found.rounds["seconds"].tolist() == [2.0, 2.0]
    assert "phases" not in found.rounds
    assert found.clients.to_dict("records") == [
        {"run": "a", "round": 1, "phase": "b", "client": 2, "n": 9, "own.f1": 0.5}
    ]


def test_a_key_that_an_earlier_version_did_not_have_is_at_its_default(tmp_path: Path) -> None:
    words = {"train": {"lr": 0.1, "schedule": {"name": "cosine"}}, "evaluate": {"every": 3}, "privacy": None}
    lora, clients = {"r": 4, "use_dora": False}, {"count": 2, "max_diverged": 0.0}
    data = {"name": "digits", "external_sites": []}
    later = write_run(tmp_path / "b", "deer", 4, [0.5], **words, data=data, model={"lora": lora}, clients=clients)
    of_old: dict[str, Any] = {"model": {"lora": {"r": 4}}, "clients": {"count": 2}, "data": {"name": "digits"}}
    earlier = write_run(tmp_path / "a", "deer", 3, [0.5], **words, **of_old)
    runs = load(earlier, later).runs
    expected = {
        "clients.max_diverged": 0.0,
        "evaluate.every": 3,
        "model.lora.use_dora": False,
        "data.external_sites": [],
    }
    for key, value in {**expected, "train.momentum": 0.0, "train.schedule.final": 0.0}.items():
        assert runs[f"config.{key}"].tolist() == [value, value], key
    (found,) = compare(load(earlier, later), Wish(("accuracy",)))
    assert len(found.numbers) == 1


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / place / "same", "deer", 3, [0.5]) for place in "xy"]
    assert load(*runs).runs["run"].tolist() == ["x/same", "y/same"]


def test_a_run_that_is_at_work_is_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "deer", 3, [0.5], status="unfinished")
    (run / "metrics.jsonl").unlink()
    found = load(run)
    assert found.runs["status"].tolist() == ["unfinished"]
    assert found.rounds.empty
    assert found.clients.empty


@pytest.mark.parametrize("name", ["results.json", "partition.json", "environment.json", "sweep.json"])
@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 1, "a": 2}'])
def test_damage_is_one_line(name: str, content: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "deer", 3, [0.5])
    (run / name).write_text(content)
    with pytest.raises(UserError, match=name):
        load(run)
