"""Ranks of this machine that are asked to leave; tests/cluster/test_preempted.py has them under SLURM and torchrun."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.distributed.runs import ROOT, command, environment, launch, results, same_log, write_config
from tests.distributed.test_failures import wait_for

ROUNDS = 25


@pytest.mark.slow
def test_ranks_whose_starter_is_asked_save_and_leave_with_75(tmp_path: Path) -> None:
    config, run = write_config(tmp_path), tmp_path / "run"
    words = ("run", config, f"rounds={ROUNDS}", "checkpoint.every=100")
    assert launch(0, *words, "--out", tmp_path / "whole").returncode == 0
    starter = subprocess.Popen(
        [*command(0, *words, "--out", run, "--ranks", 2)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_bytes().count(b"\n") >= 2, 120)
    starter.send_signal(signal.SIGUSR1)
    _, errors = starter.communicate(timeout=120)
    (line,) = errors.splitlines()
    assert line.startswith("told to leave: round ")
    assert line.endswith(f" of {ROUNDS} is saved, --resume goes on from it")
    assert starter.returncode == 75
    assert (run / "exit_code").read_text() == "75\n"
    assert launch(0, *words, "--out", run, "--resume").returncode == 0
    assert results(run) == results(tmp_path / "whole")
    assert same_log(run, tmp_path / "whole")


def test_a_run_that_is_told_while_it_loads_leaves_with_75(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("run", write_config(tmp_path), "--out", run)
    process = subprocess.Popen(
        command(0, *words), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: catches(process.pid, signal.SIGTERM), 60)
    assert not run.exists()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert errors == "told to leave: round 0 of 3 is saved, --resume goes on from it\n"
    assert (process.returncode, (run / "exit_code").read_text()) == (75, "75\n")


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)
