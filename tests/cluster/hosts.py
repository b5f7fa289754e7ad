"""Two hosts that are network namespaces of this machine, joined by a cable, and torchrun on them."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator

import pytest

from tests.distributed.runs import ROOT, environment

HOSTS = {f"fedsim{os.getpid()}{letter}": f"10.213.77.{place}" for place, letter in enumerate("ab", start=1)}
CARD = "cable0"
PORT = 29400
RUN_SECONDS = 240
LAUNCH = ("launch.py",)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)


@contextlib.contextmanager
def two_hosts() -> Iterator[dict[str, str]]:
    """Give the addresses of two hosts by name. Whatever still runs on them is killed in the end."""
    if shutil.which("ip") is None:
        pytest.skip("not installed: ip (Debian, Ubuntu: apt-get install iproute2)")
    first, second = HOSTS
    try:
        try:
            for host in HOSTS:
                ip("netns", "add", host)
            ip("link", "add", CARD, "netns", first, "type", "veth", "peer", "name", CARD, "netns", second)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        for host, address in HOSTS.items():
            ip("-n", host, "address", "add", f"{address}/24", "dev", CARD)
            for card in ("lo", CARD):
                ip("-n", host, "link", "set", card, "up")
        yield HOSTS
    finally:
        for host in HOSTS:
            kill_all(host)
            subprocess.run(["ip", "netns", "delete", host], capture_output=True, timeout=30)


def kill_all(host: str) -> None:
    """Kill everything that runs on a host, as when it loses its power but for the network."""
    inside = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, timeout=30)
    for process in inside.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)


def worsen(hosts: Iterable[str]) -> None:
    """Let the cable delay every packet, and lose some; skips the test where the kernel has no such cables."""
    for host in hosts:
        words = ["tc", "-n", host, "qdisc", "add", "dev", CARD, "root", "netem", "delay", "5ms", "2ms", "loss", "1%"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
        if done.returncode != 0:
            pytest.skip(f"the kernel has no netem: {done.stderr.strip()}")


@contextlib.contextmanager
def cut(host: str) -> Iterator[None]:
    """Pull the cable out of a host."""
    ip("-n", host, "link", "set", CARD, "down")
    try:
        yield
    finally:
        ip("-n", host, "link", "set", CARD, "up")


def start(
    host: str, *arguments: object, program: tuple[str, ...] = LAUNCH, nodes: str = "2", **meeting: int
) -> subprocess.Popen[str]:
    """Start one rank on a host under torchrun; the first host keeps the rendezvous. With fewer than 2 ``nodes`` a run
    may go on, up to three times; ``meeting``: options of the rendezvous.
    """
    is_first = host == next(iter(HOSTS))
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", "--nproc-per-node=1"]
    torchrun += ["--max-restarts=3"] if nodes != "2" else []
    words = ",".join(f"{key}={value}" for key, value in {"is_host": int(is_first), **meeting}.items())
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={next(iter(HOSTS.values()))}:{PORT}", f"--rdzv-conf={words}"]
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *torchrun, *meet, f"--local-addr={HOSTS[host]}", *program, *map(str, arguments)],
        cwd=ROOT,
        env=environment(GLOO_SOCKET_IFNAME=CARD),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
