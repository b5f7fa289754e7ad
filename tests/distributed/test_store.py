"""What clients keep, with real torchrun over gloo: no result depends on where it rests or on how many ranks hold it."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.runs import ROOT, command, environment, launch, results, same_log, write_config
from tests.distributed.test_failures import pid_of_rank, wait_for

pytestmark = pytest.mark.slow

# Two models per client and a kept optimiser; half of the clients take part, so that states rest for some rounds.
OPTIONS = ["algorithm={name: ditto}", "train.keep_optimizer=true", "clients.per_round=4", "rounds=4"]
# Less than the states of two clients: some of a rank's are in memory and some are files.
LITTLE = "store.host_gib=5.0e-5"


def test_no_budget_and_no_number_of_ranks_shows_in_the_results(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    runs = {0: "store.host_gib=null", 1: LITTLE, 2: "store.host_gib=0", 3: LITTLE}
    for ranks, budget in runs.items():
        done = launch(ranks, "run", config, *OPTIONS, budget, "--out", tmp_path / str(ranks))
        assert done.returncode == 0, done.stderr
        assert not list((tmp_path / str(ranks)).glob("spilled-*"))
    for ranks in (1, 2, 3):
        assert results(tmp_path / str(ranks)) == results(tmp_path / "0")
        assert same_log(tmp_path / str(ranks), tmp_path / "0")


def test_a_killed_run_needs_nothing_but_its_checkpoints(tmp_path: Path) -> None:
    """Killed with its states spilled, and resumed on other ranks with another budget, with the files damaged."""
    config = write_config(tmp_path)
    assert launch(0, "run", config, *OPTIONS, "--out", tmp_path / "whole").returncode == 0
    broken = tmp_path / "broken"
    process = subprocess.Popen(
        command(2, "run", config, *OPTIONS, "store.host_gib=0", "--out", broken),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint, log = broken / "checkpoints" / "round-000002", broken / "metrics.jsonl"
    wait_for(checkpoint.exists, 120)
    os.kill(pid_of_rank(process.pid, 1), signal.SIGKILL)
    assert process.wait(60) != 0
    assert not (broken / "results.json").exists()
    assert log.read_bytes().count(b"\n") < 4
    (broken / "spilled-00001").mkdir(exist_ok=True)
    for client in range(7):
        (broken / "spilled-00001" / f"{client}.safetensors").write_bytes(b"of another life")
    shutil.rmtree(broken / "spilled-00000", ignore_errors=True)
    done = launch(3, "run", config, *OPTIONS, LITTLE, "--out", broken, "--resume")
    assert done.returncode == 0, done.stderr
    assert results(broken) == results(tmp_path / "whole")
    assert same_log(broken, tmp_path / "whole")
    assert not list(broken.glob("spilled-*"))


def test_states_travel_in_waves(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "--rdzv-backend", "c10d"]
    words += ["--rdzv-endpoint", "localhost:0", "-m", "tests.distributed.moving", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
