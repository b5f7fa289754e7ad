"""What every contender shares: the command line, the clock, the memory count and the report."""

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.machine import package_versions
from benchmarks.regimes import Regime, find

# Set by a contender that starts further processes, so that start-up counts from the first of them.
STARTED_AT = "FEDSIM_BENCH_STARTED_AT"


@dataclass(frozen=True)
class Settings:
    """One run of one contender; ``rounds`` are timed, one more before them warms up."""

    regime: Regime
    rounds: int
    threads: int
    processes: int
    precision: str
    out: Path


def parse_settings(description: str) -> Settings:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--regime", type=find, required=True)
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, after one that warms up")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--out", type=Path, required=True, help="path; .json and .npz are appended")
    arguments = parser.parse_args()
    return Settings(**vars(arguments))


def process_started_at() -> float:
    """Seconds since the epoch at which this contender's first process started."""
    inherited = os.environ.get(STARTED_AT)
    return float(inherited) if inherited else psutil.Process().create_time()


def peak_rss_of_tree() -> int:
    """Bytes: the sum of the peak resident sizes of this process and all its descendants alive now.

    VmHWM belongs to the process's own memory map; getrusage's peak would be inherited through fork and exec.
    """
    root = psutil.Process()
    return sum(_peak_rss(process.pid) for process in (root, *root.children(recursive=True)))


def _peak_rss(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:  # it ended between the listing and the reading
        return 0
    lines = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return sum(int(line.split()[1]) * 1024 for line in lines)


class RoundClock:
    """Durations of successive rounds; the first one is the warm-up."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = time.perf_counter()

    def start(self) -> None:
        self._last = time.perf_counter()

    def stop(self) -> None:
        self.seconds.append(time.perf_counter() - self._last)


@dataclass(frozen=True)
class Outcome:
    """``first_step_at``: seconds since the epoch; ``factors``: the LoRA factors after the warm-up round."""

    seconds_per_round: list[float]
    first_step_at: float
    peak_rss_bytes: int
    factors: dict[str, np.ndarray]


def write_report(contender: str, settings: Settings, outcome: Outcome) -> None:
    """Print the report as JSON and write it, with the factors after round 1 beside it."""
    timed = outcome.seconds_per_round[1:]
    regime, mean_seconds = settings.regime, float(np.mean(timed))
    report = {
        "contender": contender,
        "regime": regime.name,
        "precision": settings.precision,
        "processes": settings.processes,
        "threads": settings.threads,
        "seconds_per_round": timed,
        "warm_up_seconds": outcome.seconds_per_round[0],
        "clients_per_s": regime.num_clients / mean_seconds,
        "images_per_s": regime.images_per_round / mean_seconds,
        "peak_rss_bytes": outcome.peak_rss_bytes,
        "versions": package_versions(),
        "startup_s": outcome.first_step_at - process_started_at(),
    }
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(f"{settings.out}.npz", **outcome.factors)
    Path(f"{settings.out}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
