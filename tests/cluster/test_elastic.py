"""A host that is lost to the others: the run ends with the cause, or goes on without it, as torchrun is told."""

import re
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cluster.hosts import RUN_SECONDS, cut, kill_all, start
from tests.distributed.impatient import SILENCE_SECONDS
from tests.distributed.runs import launch, results, same_log, write_config
from tests.distributed.test_failures import pid_of_rank, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
PROGRAM = ("-m", "tests.distributed.impatient")
ROUNDS = 20
#: How long torchrun waits for further hosts, and until it takes one for gone; without them half a minute each.
ELASTIC = {"last_call_timeout": 3, "keep_alive_interval": 1, "keep_alive_max_attempt": 5}


def in_midst(run: Path) -> None:
    """Wait until a run has a checkpoint."""
    wait_for(lambda: any(run.glob("checkpoints/round-*")), 120)
    assert not (run / "results.json").exists()


def test_a_cable_that_is_cut_ends_the_ranks_on_both_hosts_with_the_cause(hosts: dict[str, str], tmp_path: Path) -> None:
    run, words = tmp_path / "run", (write_config(tmp_path), "rounds=10000")
    first, second = (start(host, "run", *words, "--out", run, program=PROGRAM) for host in hosts)
    in_midst(run)
    with cut(list(hosts)[1]):
        here, _ = first.communicate(timeout=RUN_SECONDS)
        wait_for(lambda: not has_rank(second.pid, 1), 60)
        # torchrun itself waits at the rendezvous beyond the cable until TCP gives up: more than four minutes.
        kill_all(list(hosts)[1])
        there, _ = second.communicate(timeout=60)
    assert first.returncode == 1
    silent = f"has given no sign of life for {SILENCE_SECONDS:g} seconds: it is stopped, or its host hangs"
    assert re.search(rf"^rank 1 on \S+ {silent}$", here, re.MULTILINE), here
    assert re.search(rf"^rank 1: torchrun's agent, which keeps the store at \S+, {silent}$", there, re.MULTILINE), there


def test_a_cable_that_is_pulled_for_a_moment_costs_nothing(hosts: dict[str, str], tmp_path: Path) -> None:
    config, run, alone = write_config(tmp_path), tmp_path / "run", tmp_path / "alone"
    words = ("run", config, f"rounds={ROUNDS}", "--out")
    ranks = [start(host, *words, run, program=PROGRAM) for host in hosts]
    in_midst(run)
    with cut(list(hosts)[1]):
        time.sleep(SILENCE_SECONDS / 3)
    for rank in ranks:
        said, _ = rank.communicate(timeout=RUN_SECONDS)
        assert rank.returncode == 0, said
    assert launch(0, *words, alone).returncode == 0
    assert results(run) == results(alone)
    assert same_log(run, alone)


def has_rank(agent: int, rank: int) -> bool:
    """Whether a torchrun has a process for a rank."""
    with suppress(LookupError, OSError):  # gone, or about to be
        return pid_of_rank(agent, rank) > 0
    return False


@pytest.mark.parametrize("fate", ["cut", "killed"])
def test_with_restarts_the_host_that_is_left_goes_on_to_the_same_bits(
    hosts: dict[str, str], tmp_path: Path, fate: str
) -> None:
    config, run, alone = write_config(tmp_path), tmp_path / "run", tmp_path / "alone"
    words = ("run", config, f"rounds={ROUNDS}", "--out", run, "--resume")
    first, second = (start(host, *words, program=PROGRAM, nodes="1:2", **ELASTIC) for host in hosts)
    in_midst(run)
    lost = list(hosts)[1]
    if fate == "killed":
        kill_all(lost)
        said, _ = first.communicate(timeout=RUN_SECONDS)
    else:
        with cut(lost):
            said, _ = first.communicate(timeout=RUN_SECONDS)
            kill_all(lost)
    second.communicate(timeout=60)
    assert first.returncode == 0, said
    assert f"{run}: 2 ranks" in said
    assert f"{run}: 1 rank, " in said
    assert launch(0, "run", config, f"rounds={ROUNDS}", "--out", alone).returncode == 0
    assert results(run) == results(alone)
    assert same_log(run, alone)
