"""Killed ranks and raising clients, with real torchrun over gloo: nothing hangs and nothing is lost."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.distributed.runs import ROOT, command, environment, launch, results, same_log, write_config

pytestmark = pytest.mark.slow

BROKEN_METHOD = """
from fedsim.algorithms.base import Algorithm

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
        (1, ["privacy={mechanism: {name: record, bound: 0.5}, epsilon: 20.0, delta: 1.0e-3}"]),
        (0, ["algorithm.name=rolora"]),
        (1, ["algorithm.name=fedsa_lora", "evaluate.clients=true"]),
        (0, ["algorithm.name=fedsvd"]),
        # The bound that follows the clients' norms is the layer's own state.
        (
            0,
            [
                "algorithm.name=fedavg",
                "clients.sampling=poisson",
                "privacy={mechanism: {name: client, bound: 0.1, clipping: {name: quantile, count_noise: 2.0}}, "
                "noise_multiplier: 0.5, delta: 1.0e-5}",
            ],
        ),
        (1, ["algorithm.name=fedprox", "privacy={secure_aggregation: {threshold: 0.6, dropout: 0.1}}"]),
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


@pytest.mark.parametrize(("kind", "begins"), [("late", "error: command line"), ("alone", "error: rank 1: command")])
def test_a_mistake_is_told_once_by_whoever_can(kind: str, begins: str, tmp_path: Path) -> None:
    program = [*command(2)[:-1], "-m", "tests.distributed.uneven", kind, str(write_config(tmp_path)), tmp_path / "run"]
    done = subprocess.run(program, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "train.lrr" in line]
    assert [line[: len(begins)] for line in lines] == [begins]


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


def bare_ranks(count: int, words: Sequence[object], **extra: str) -> list[subprocess.Popen[str]]:
    """Ranks as a job script starts them, without torchrun's agent."""
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            env=environment(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank), **extra),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_taken_port_ends_every_rank_with_one_line(tmp_path: Path) -> None:
    words = ["launch.py", "run", write_config(tmp_path), "--out", tmp_path / "run"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ranks = bare_ranks(2, words, MASTER_PORT=str(port))
        errors = [rank.communicate(timeout=150)[1].splitlines() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    for rank, (line,) in enumerate(errors):
        assert line.startswith(f"error: {'rank 1: ' * rank}port {port} of 127.0.0.1, where the ranks meet: found ")
        assert "MASTER_PORT" in line
    assert "Address already in use" in errors[0][0]
    assert not (tmp_path / "run").exists()


def start_waiting(folder: Path, agent: bool) -> tuple[list[subprocess.Popen[str]], list[int]]:
    """Two ranks that have met: what to wait for, and the process of each."""
    if agent:
        torchrun = command(2)[:-1]
        words = [*torchrun, "-m", "tests.distributed.waiting", str(folder)]
        started = [subprocess.Popen(words, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)]
    else:
        quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # as under launch.py
        started = bare_ranks(2, ["-m", "tests.distributed.waiting", folder], MASTER_PORT=str(free_port()), **quiet)
    files = [folder / f"{rank}.pid" for rank in range(2)]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files), 120)
    return started, [int(file.read_text()) for file in files]


@pytest.mark.parametrize("agent", [False, True])
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_and_ends_the_others(stopped: int, agent: bool, tmp_path: Path) -> None:
    started, processes = start_waiting(tmp_path, agent)
    try:
        os.kill(processes[stopped], signal.SIGSTOP)
        waited = started[0 if agent else 1 - stopped]
        error = waited.communicate(timeout=120)[1]
    finally:
        with suppress(ProcessLookupError):
            os.kill(processes[stopped], signal.SIGKILL)
    assert waited.returncode == 1
    lines = [line for line in error.splitlines() if "no sign of life" in line]
    assert len(lines) == 1
    assert lines[0].endswith("has given no sign of life for 3 seconds: it is stopped, or its host hangs")
    if stopped == 1 or agent:
        assert lines[0].startswith(f"rank {stopped} on {socket.gethostname()} ")
    else:
        assert lines[0].startswith("rank 1: rank 0, which keeps the store at 127.0.0.1, ")


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_is_one_line_of_the_other(killed: int, tmp_path: Path) -> None:
    started, processes = start_waiting(tmp_path, agent=False)
    os.kill(processes[killed], signal.SIGKILL)
    (tmp_path / "end").touch()
    error = started[1 - killed].communicate(timeout=60)[1]
    assert started[1 - killed].returncode == 1
    (line,) = error.splitlines()
    gone = r"(another rank|rank 0, which keeps the store at \S+) is gone"
    assert re.match(rf"rank {1 - killed}: {gone}", line), line


def test_ranks_that_were_all_stopped_go_on(tmp_path: Path) -> None:
    started, processes = start_waiting(tmp_path, agent=False)
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    time.sleep(6)  # twice what counts as silence: as if the machine had slept
    for process in processes:
        os.kill(process, signal.SIGCONT)
    (tmp_path / "end").touch()
    assert [rank.communicate(timeout=120)[1] for rank in started] == ["", ""]
    assert [rank.returncode for rank in started] == [0, 0]


def test_a_rank_that_is_stopped_for_a_while_costs_nothing(tmp_path: Path) -> None:
    config, run, alone = write_config(tmp_path), tmp_path / "run", tmp_path / "alone"
    assert launch(0, "run", config, "--out", alone).returncode == 0
    ranks = bare_ranks(2, ["launch.py", "run", config, "--out", run], MASTER_PORT=str(free_port()))
    wait_for((run / "metrics.jsonl").exists, 120)
    ranks[0].send_signal(signal.SIGSTOP)
    time.sleep(5)
    ranks[0].send_signal(signal.SIGCONT)
    assert [rank.communicate(timeout=150)[1] for rank in ranks] == ["", ""]
    assert results(run) == results(alone)
    assert same_log(run, alone)
