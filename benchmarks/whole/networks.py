"""Whole networks in training beside pfl, BlazeFL and a plain loop, with the same mathematics, in turns.

    python -m benchmarks.whole.networks [--turns 3] [--works "ResNet-18" ...] [--precisions fp32 bf16]

The small U-Net of configs/harmofl_cells.yaml, the slim VGG16, ResNet-18 and DenseNet121 with random weights, SGD with
momentum. The loop is PyTorch as one writes it: a client after the other, a step after the other, averaged. Every
contender is tried with one process of one thread and one of two, all but the loop also with two processes, and BlazeFL
with its pool of two threads that have a client each (1x2-pool). Each waits for its turn, a round, and who begins
changes. Printed are medians of milliseconds a step over the turns after the first, each contender in its best setting,
and the ratio within a turn; then by how much parameters differ after a round, as a share of their change. BatchNorm
over noise makes much of rounding; pfl does not average its statistics.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from safetensors.numpy import load_file

from benchmarks.lora.any_encoder import Waiting, measure
from benchmarks.machine import description
from benchmarks.whole.ours import prepare
from benchmarks.whole.work import WORKS
from fedsim.comm.group import open_group

MODULES = {
    "fedsim": "benchmarks.whole.ours",
    "loop": "benchmarks.whole.peer",
    "pfl": "benchmarks.whole.pfl_peer",
    "blazefl": "benchmarks.whole.blazefl_peer",
}
PEERS = ("pfl", "blazefl")


@dataclass(frozen=True)
class Contender:
    """A program in a setting. ``thread_pool``: threads are of BlazeFL's pool, and not PyTorch's."""

    program: str
    processes: int
    threads: int
    thread_pool: bool = False

    @property
    def name(self) -> str:
        return f"{self.program} {self.processes}x{self.threads}{'-pool' if self.thread_pool else ''}"

    def command(self, works: Sequence[str], precision: str, arguments: argparse.Namespace, folder: Path) -> list[str]:
        words = {"folder": folder, "name": self.name, "precision": precision, "turns": arguments.turns}
        words |= {"processes": self.processes, "threads": self.threads}
        options = [part for word, value in words.items() for part in (f"--{word}", str(value))]
        options += ["--thread-pool"] if self.thread_pool else []
        python = arguments.peers_python if self.program in PEERS else sys.executable
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(self.processes)]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        is_alone = self.program in PEERS or self.processes == 1
        return [python, *([] if is_alone else launcher), "-m", MODULES[self.program], *options, "--works", *works]


def difference(folder: Path, name: str, reference: str) -> float:
    """The norm of two contenders' difference after a round, over that of the reference's change in it."""
    start = load_file(folder / "start.safetensors")
    trained = [key for key in start if "running_" not in key and "num_batches" not in key]
    mine, theirs = (load_file(folder / f"{one}.safetensors") for one in (name, reference))
    apart, moved = (
        np.concatenate([(a[key].astype(np.float64) - b[key]).ravel() for key in trained])
        for a, b in ((mine, theirs), (theirs, start))
    )
    return float(np.linalg.norm(apart) / np.linalg.norm(moved))


def row(work: str, precision: str, seconds: dict[str, list[float]], apart: float) -> str:
    """A line of the table."""
    steps = WORKS[work].clients * WORKS[work].batches
    best = {
        program: min((name for name in seconds if name.startswith(program)), key=lambda name: median(seconds[name]))
        for program in MODULES
    }
    cells = [f"{1000 * median(seconds[name]) / steps:.1f} ({name.rpartition(' ')[2]})" for name in best.values()]
    ours = seconds[best["fedsim"]]
    for program in ("loop", *PEERS):
        ratio = median(other / own for other, own in zip(seconds[best[program]], ours, strict=True))
        cells.append(f"{ratio:.2f}")
    return f"| {work} | {precision} | {' | '.join(cells)} | {apart:.0e} |"


def compare(precision: str, arguments: argparse.Namespace) -> None:
    """Print a row for every network."""
    contenders = [Contender(program, *setting) for program in MODULES for setting in ((1, 1), (1, 2))]
    contenders += [Contender(program, 2, 1) for program in ("fedsim", *PEERS)]
    contenders.append(Contender("blazefl", 1, 2, thread_pool=True))
    with tempfile.TemporaryDirectory(prefix="fedsim-") as scratch:
        folder = Path(scratch)
        with open_group() as group:
            prepare(folder, arguments.works, group)
        waiting = [
            Waiting(contender, contender.command(arguments.works, precision, arguments, folder))
            for contender in contenders
        ]
        try:
            for work in arguments.works:
                seconds = measure(waiting, arguments.turns)
                names = [one.name for one in contenders]
                apart = max(difference(folder / work, name, "loop 1x1") for name in names)
                print(row(work, precision, seconds, apart), flush=True)
        finally:
            for one in waiting:
                one.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--peers-python", default=".venv-bench/bin/python", help="of requirements-bench.txt")
    arguments = parser.parse_args()
    if not Path(arguments.peers_python).is_file():
        parser.error(f"--peers-python: found no {arguments.peers_python}; benchmarks/README.md says how to make it")
    print(json.dumps(description()))
    titles = ["network", "precision", "fedsim, ms a step", "loop", "pfl", "BlazeFL", "of the loop", "of pfl"]
    titles += ["of BlazeFL", "differs"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for precision in arguments.precisions:
        compare(precision, arguments)


if __name__ == "__main__":
    main()
