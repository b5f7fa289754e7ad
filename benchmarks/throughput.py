"""Contenders side by side on the same work, in turn within one run (A B C, A B C), checked to agree.

    python -m benchmarks.throughput --name quiet     # all regimes, both precisions
    python -m benchmarks.throughput --small          # minutes: the small regime in fp32
    python -m benchmarks.throughput --generated 1 12 # twelve regimes drawn from seed 1
    python -m benchmarks.throughput --name gpu --regimes clip clip120 --precisions bf16 --settings 1x1 \\
        --contenders fedsim fedsim_sequential        # on a GPU: blocks beside one client at a time

Writes benchmarks/results/<name>.json. Exit code 1 if a contender fails or fp32 results disagree.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.agreement import FP32_LIMIT, load_factors, relative_difference
from benchmarks.contenders.common import STARTED_AT
from benchmarks.contenders.tables import leads, table
from benchmarks.regimes import REGIMES, Array, Regime, find, generated, operations_per_image

RESULTS = Path(__file__).parent / "results"
TIMEOUT_SECONDS = 3600.0


@dataclass(frozen=True)
class Contender:
    """``settings``: the (processes, threads) that it is tried with; ``environment``: its own variables.

    A peer runs with the peers' Python, fedsim with the one that runs this.
    """

    name: str
    module: str
    settings: tuple[tuple[int, int], ...]
    is_peer: bool = True
    environment: tuple[tuple[str, str], ...] = ()


OURS = "benchmarks.contenders.ours"
BLAZEFL = "benchmarks.contenders.blazefl_peer"
# The first contender is the one that the others must agree with.
CONTENDERS = (
    Contender("release_loop", "benchmarks.contenders.release_loop", ((1, 1), (1, 2))),
    Contender("fedsim", OURS, ((1, 1), (1, 2), (2, 1)), is_peer=False),
    Contender("fedsim_sequential", OURS, ((1, 1),), is_peer=False, environment=(("FEDSIM_BENCH_PER_BLOCK", "1"),)),
    # As on a machine without a C++ compiler.
    Contender("fedsim_uncompiled", OURS, ((1, 1),), is_peer=False, environment=(("CXX", "false"),)),
    Contender("flower", "benchmarks.contenders.flower_peer", ((1, 1), (1, 2), (2, 1))),
    Contender("pfl", "benchmarks.contenders.pfl_peer", ((1, 1), (1, 2), (2, 1))),
    Contender("blazefl", BLAZEFL, ((1, 1), (1, 2), (2, 1))),
    # Two threads that have a client each, and not two of PyTorch's for one client.
    Contender("blazefl_threads", BLAZEFL, ((1, 2),), environment=(("FEDSIM_BENCH_THREAD_POOL", "1"),)),
)


@dataclass(frozen=True)
class Run:
    """One contender in one setting; it is started once per pass, and its rounds are put together."""

    contender: Contender
    regime: Regime
    precision: str
    processes: int
    threads: int

    @property
    def label(self) -> str:
        return f"{self.contender.name} {self.regime.name} {self.precision} {self.processes}x{self.threads}"

    def command(self, python: str, rounds: int, out: Path) -> list[str]:
        options = {
            "--regime": self.regime.name,
            "--precision": self.precision,
            "--processes": str(self.processes),
            "--threads": str(self.threads),
            "--rounds": str(rounds),
            "--out": str(out),
        }
        program = ["-m", self.contender.module, *itertools.chain.from_iterable(options.items())]
        if self.contender.is_peer or self.processes == 1:
            return [python if self.contender.is_peer else sys.executable, *program]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(self.processes)]
        return [*torchrun, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *program]


class FailedError(RuntimeError):
    """A contender ended without a report; the message has the end of what it printed."""


def execute(run: Run, python: str, rounds: int, out: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Start the contender once: its report, and its factors after round 1."""
    process = subprocess.Popen(
        run.command(python, rounds, out),
        env={
            **os.environ,
            **dict(run.contender.environment),
            "OMP_NUM_THREADS": str(run.threads),
            STARTED_AT: repr(time.time()),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise FailedError(f"{run.label}: no end after {TIMEOUT_SECONDS:.0f} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        raise FailedError(f"{run.label}: exit code {process.returncode}\n{printed[-2000:]}")
    report: dict[str, Any] = json.loads(Path(f"{out}.json").read_text()) | {"contender": run.contender.name}
    return report, load_factors(Path(f"{out}.npz"), run.regime)


def measure(runs: list[Run], python: str, rounds: int, passes: int, console: Console) -> list[dict[str, Any]]:
    """All runs of one regime, in turn, ``passes`` times; failed ones have an "error" instead of numbers."""
    merged: dict[Run, dict[str, Any]] = {}
    reference: dict[str, Array] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for index, run in itertools.product(range(passes), runs):
            if "error" in merged.get(run, {}):
                continue
            try:
                report, factors = execute(run, python, rounds, Path(folder) / "result")
            except FailedError as failure:
                console.print(str(failure), style="red")
                merged[run] = {"label": run.label, "contender": run.contender.name, "error": str(failure)}
                continue
            console.print(f"pass {index + 1}: {run.label}: {report['clients_per_s']:.3g} clients/s")
            if reference is None:
                reference = factors
            report["difference"] = relative_difference(factors, reference, run.regime)
            merged[run] = combine(merged[run], report, run.regime) if run in merged else report
    return list(merged.values())


def combine(first: dict[str, Any], second: dict[str, Any], regime: Regime) -> dict[str, Any]:
    """Two passes of the same run as one: all rounds, the larger memory and difference, the quicker start."""
    seconds = first["seconds_per_round"] + second["seconds_per_round"]
    return second | {
        "seconds_per_round": seconds,
        "clients_per_s": regime.num_clients / mean(seconds),
        "images_per_s": regime.images_per_round / mean(seconds),
        "peak_rss_bytes": max(first["peak_rss_bytes"], second["peak_rss_bytes"]),
        "startup_s": min(first["startup_s"], second["startup_s"]),
        "difference": max(first["difference"], second["difference"]),
    }


def add_shares(report: dict[str, Any], limits: dict[str, float]) -> None:
    """The share of the machine's matrix rate, with all tokens counted and with the least that is needed."""
    regime, limit = find(report["regime"]), limits[report["precision"]]
    for name, minimum in (("share_all_tokens", False), ("share_minimum", True)):
        operations = operations_per_image(regime, minimum=minimum)
        report[name] = report["images_per_s"] * operations / limit


def problems(reports: list[dict[str, Any]]) -> list[str]:
    failed = [report["label"] for report in reports if "error" in report]
    measured = [report for report in reports if "error" not in report and report["precision"] == "fp32"]
    disagree = [
        f"{report['contender']} {report['regime']}: differs by {report['difference']:.1e} of the change"
        for report in measured
        if report["difference"] > FP32_LIMIT
    ]
    return failed + disagree


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--name", help="of the results file (default: small or all)")
    parser.add_argument("--small", action="store_true", help="small regime, fp32, 2 rounds, 1 pass")
    parser.add_argument("--contenders", nargs="+", choices=[c.name for c in CONTENDERS])
    parser.add_argument("--regimes", nargs="+", type=find, default=list(REGIMES.values())[:3])
    parser.add_argument("--generated", nargs=2, type=int, metavar=("SEED", "NUMBER"), help="regimes drawn from a seed")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--settings", nargs="+", default=["1x1", "1x2", "2x1"], help="PROCESSESxTHREADS to try")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each pass")
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--peers-python", default=".venv-bench/bin/python", help="of requirements-bench.txt")
    arguments = parser.parse_args()
    if arguments.small:
        arguments.regimes, arguments.precisions, arguments.rounds, arguments.passes = (
            [REGIMES["small"]],
            ["fp32"],
            2,
            1,
        )
    if arguments.generated:
        seed, number = arguments.generated
        arguments.regimes = [generated(seed, place) for place in range(number)]
    arguments.name = arguments.name or ("small" if arguments.small else "all")
    arguments.contenders = [c for c in CONTENDERS if arguments.contenders is None or c.name in arguments.contenders]
    with_peers = any(contender.is_peer for contender in arguments.contenders)
    if with_peers and not Path(arguments.peers_python).is_file():
        parser.error(f"--peers-python: found no {arguments.peers_python}; benchmarks/README.md says how to make it")
    return arguments


def main() -> int:
    arguments, console = parse(), Console()
    # fp32 first: the first run is the one that the others are compared with.
    precisions = sorted(arguments.precisions, reverse=True)
    rates = {precision: machine.rates(machine.own_device(), precision, seconds=1.0) for precision in precisions}
    limits = {precision: max(by_setting.values()) for precision, by_setting in rates.items()}
    console.print({precision: f"{limit / 1e9:.0f} GFLOP/s" for precision, limit in limits.items()})
    reports: list[dict[str, Any]] = []
    for regime in arguments.regimes:
        runs = [
            Run(contender, regime, precision, *setting)
            for precision, contender in itertools.product(precisions, arguments.contenders)
            for setting in contender.settings
            if f"{setting[0]}x{setting[1]}" in arguments.settings
        ]
        measured = measure(runs, arguments.peers_python, arguments.rounds, arguments.passes, console)
        for report in measured:
            if "error" not in report:
                add_shares(report, limits)
        console.print(table(regime, measured))
        reports += measured
    console.print(leads(reports, [contender.name for contender in CONTENDERS if contender.is_peer]))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{arguments.name}.json"
    result = {"machine": machine.description(), "matrix_flops_per_s": rates, "runs": reports}
    path.write_text(json.dumps(result, indent=1) + "\n")
    found = problems(reports)
    console.print("\n".join(found) or f"all agree; written to benchmarks/results/{path.name}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
