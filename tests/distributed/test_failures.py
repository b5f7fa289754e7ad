"""Killed ranks and raising clients, with real torchrun over gloo: nothing hangs and nothing is lost."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.distributed.runs import ROOT, command, environment, launch, results, same_log, write_config

pytestmark = pytest.mark.slow

BROKEN_METHOD = """
from algorithms.base import Algorithm

class Broken(Algorithm):
    def pre_aggregate(self, update):
        if 5 in update.clients:
            raise ArithmeticError("client 5 has had enough")
        return super().pre_aggregate(update)
"""
# Moving targets of the amplitudes, and moments that outlive rounds (below), under perturbed steps.
HARMOFL = ["algorithm={name: harmofl, share_target: every}", "model.amplitude_norm={}"]


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def pid_of_rank(parent: int, rank: int) -> int:
    """The process that torchrun started for a rank, found by its environment."""
    for child in map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()):
        if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
            return child
    raise LookupError(rank)


@pytest.mark.parametrize(
    ("victim", "options"),
    [
        (1, []),
        (0, ["algorithm.name=fedavg", "train.keep_optimizer=true"]),
        (1, ["algorithm={name: prrfl}", "evaluate.clients=true"]),
        (0, [*HARMOFL, "train={lr: 0.05, momentum: 0.9, batch_size: 8, keep_optimizer: true}"]),
        (1, [*HARMOFL, "train={lr: 0.01, optimizer: adam, batch_size: 8, keep_optimizer: true}"]),
        (1, ["algorithm.name=fedadam"]),
    ],
)
def test_a_killed_rank_costs_nothing(victim, options, tmp_path):
    config = write_config(tmp_path)
    options = [*options, "rounds=4", "clients.per_round=5"]
    assert launch(0, "run", config, *options, "--out", tmp_path / "whole").returncode == 0
    broken = tmp_path / "broken"
    process = subprocess.Popen(
        command(2, "run", config, *options, "--out", broken),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(
        lambda: (broken / "metrics.jsonl").exists() and (broken / "metrics.jsonl").read_bytes().count(b"\n") >= 2, 120
    )
    os.kill(pid_of_rank(process.pid, victim), signal.SIGKILL)
    assert process.wait(60) != 0
    assert not (broken / "results.json").exists()
    done = launch(3, "run", config, *options, "--out", broken, "--resume")
    assert done.returncode == 0, done.stderr
    assert results(broken) == results(tmp_path / "whole")
    assert same_log(broken, tmp_path / "whole")


def test_one_raising_client_ends_all_ranks_with_one_message(tmp_path):
    (tmp_path / "broken_method.py").write_text(BROKEN_METHOD)
    config = write_config(tmp_path)
    done = launch(2, "run", config, "algorithm.name=broken_method.Broken", "--out", tmp_path / "run")
    assert done.returncode != 0
    assert done.stderr.count("ArithmeticError: client 5 has had enough") == 1


def test_diverging_training_is_one_line_naming_client_and_tensor(tmp_path):
    done = launch(2, "run", write_config(tmp_path), "train.lr=1000", "--out", tmp_path / "run")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "client" in lines[0]
    assert "did the training diverge" in lines[0]


def test_a_broken_config_ends_all_ranks_with_one_line(tmp_path):
    done = launch(2, "run", write_config(tmp_path), "train.lrr=1", "--out", tmp_path / "run")
    assert done.returncode != 0
    assert sum("train.lrr" in line for line in done.stderr.splitlines()) == 1


def test_every_broken_config_ends_all_ranks_with_one_line(tmp_path: Path) -> None:
    torchrun = command(2)[:-1]
    program = [*torchrun, "-m", "tests.distributed.broken_configs", str(tmp_path)]
    subprocess.run(program, cwd=ROOT, env=environment(), check=True, timeout=400)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert len(first) == len(second) >= 200
    for code, out, err in first:
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert "Traceback" not in err
    assert {(code, out, err) for code, out, err in second} == {(2, "", "")}
    assert not (tmp_path / "out").exists()
