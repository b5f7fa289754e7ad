"""torchrun on two hosts, which are two network namespaces joined by a cable."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.hosts import CARD, HOSTS, PORT, RUN_SECONDS, cut, kill_all, start, worsen
from tests.distributed.runs import ROOT, environment, launch, results, same_log, write_config
from tests.distributed.test_failures import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def start_bare(folder: Path) -> list[subprocess.Popen[str]]:
    """A rank on each host without torchrun's agent, which meet at the first host and wait (see waiting.py).

    PyTorch's warnings are off as under launch.py: hosts here have no names to look up.
    """
    meet = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": next(iter(HOSTS.values())), "MASTER_PORT": str(PORT)}
    ranks = [
        subprocess.Popen(
            ["ip", "netns", "exec", host, sys.executable, "-m", "tests.distributed.waiting", str(folder)],
            cwd=ROOT,
            env=environment(GLOO_SOCKET_IFNAME=CARD, RANK=str(rank), TORCH_CPP_LOG_LEVEL="ERROR", **meet),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, host in enumerate(HOSTS)
    ]
    wait_for(lambda: all((folder / f"{rank}.pid").exists() for rank in range(2)), 120)
    return ranks


def listening(host: str) -> set[str]:
    """The addresses at which something on a host listens, without their ports."""
    words = ["ip", "netns", "exec", host, "ss", "--listening", "--tcp", "--numeric", "--no-header"]
    lines = subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout.splitlines()
    return {line.split()[3].rpartition(":")[0] for line in lines}


def test_ranks_listen_at_the_addresses_where_they_meet_alone(hosts: dict[str, str], tmp_path: Path) -> None:
    ranks = start_bare(tmp_path)
    assert [listening(host) for host in hosts] == [{address} for address in hosts.values()]
    (tmp_path / "end").touch()
    assert [rank.communicate(timeout=60)[1] for rank in ranks] == ["", ""]
    assert [rank.returncode for rank in ranks] == [0, 0]


def test_hosts_that_no_longer_hear_each_other_end(hosts: dict[str, str], tmp_path: Path) -> None:
    ranks = start_bare(tmp_path)
    first, second = hosts
    with cut(second):
        errors = [rank.communicate(timeout=60)[1].splitlines() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1]
    silent = "has given no sign of life for 3 seconds: it is stopped, or its host hangs"
    assert errors[0] == [f"rank 1 on {socket.gethostname()} {silent}"]
    assert errors[1] == [f"rank 1: rank 0, which keeps the store at {hosts[first]}, {silent}"]


@pytest.mark.parametrize("cable", ["good", "bad"])
def test_two_hosts_give_the_bits_of_one_process(hosts: dict[str, str], tmp_path: Path, cable: str) -> None:
    if cable == "bad":
        worsen(hosts)
    config, run, alone = write_config(tmp_path), tmp_path / "run", tmp_path / "alone"
    ranks = [start(host, "run", config, "--out", run) for host in hosts]
    for rank in ranks:
        output, _ = rank.communicate(timeout=RUN_SECONDS)
        assert rank.returncode == 0, output
    assert launch(0, "run", config, "--out", alone).returncode == 0
    assert results(run) == results(alone)
    assert same_log(run, alone)


def test_a_host_that_is_lost_ends_the_other(hosts: dict[str, str], tmp_path: Path) -> None:
    config = write_config(tmp_path)
    run = tmp_path / "run"
    first, second = (start(host, "run", config, "rounds=10000", "--out", run) for host in hosts)
    for line in first.stdout or ():
        if " round 1/" in line:
            break
    kill_all(list(hosts)[1])
    second.communicate(timeout=30)
    first.communicate(timeout=30)
    assert first.returncode != 0
