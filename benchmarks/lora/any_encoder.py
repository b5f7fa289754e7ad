"""LoRA on encoders that are no plain transformers, beside pfl; and the plain ViT beside what it was before them.

    python -m benchmarks.lora.any_encoder [--turns 9] [--encoders Swin ...] [--before COMMIT] [--clock cpu]

Swin and ConvNeXt of timm and DINOv2 of Hugging Face's, at small sizes with random weights, linear layers adapted, and
ConvNeXt's convolutions, too. Every client has two batches. fedsim trains blocks of clients, and one client at a time;
pfl has peft's layers and trains one at a time. Both are tried with one process of one thread, one of two, and two of
one; each is a process that waits for its turn, a round, and who begins changes. Printed are medians over the turns
after the first, and of the ratio within a turn: of blocks to one at a time with one thread, and of each program's best
setting. After the first round the factors of all must agree. ``--before`` names the commit that the plain ViT is
compared with, as benchmarks.beside does; without it, it is the last one without LoRA on any network.

The processor's time (``--clock cpu``) is for busy machines; it is known of one process with one thread alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from safetensors.numpy import load_file

from benchmarks.agreement import FP32_LIMIT
from benchmarks.beside import beside
from benchmarks.lora.any_ours import prepare
from benchmarks.lora.any_work import ENCODERS
from benchmarks.machine import description
from fedsim.comm.group import open_group

BEFORE = "0a53a52"
GOALS = {"one at a time": 1.5, "pfl": 1.3}
OURS, PFL, ALONE = "fedsim", "pfl", "one at a time"
PLAIN = "plain ViT"


@dataclass(frozen=True)
class Contender:
    """A program in a setting; ``per_block``: fedsim's clients per block, shared out over its ranks."""

    program: str
    processes: int
    threads: int
    per_block: int

    @property
    def name(self) -> str:
        return f"{self.program} {self.processes}x{self.threads}"

    def command(self, encoders: Sequence[str], arguments: argparse.Namespace, folder: Path) -> list[str]:
        words = {"folder": folder, "name": self.name, "processes": self.processes, "threads": self.threads}
        words |= {"per-block": self.per_block, "clock": arguments.clock, "turns": arguments.turns}
        words |= {"clients": arguments.clients, "batch": arguments.batch}
        options = [part for word, value in words.items() for part in (f"--{word}", str(value))]
        options += ["--encoders", *encoders]
        if self.program == PFL:
            return [arguments.peers_python, "-m", "benchmarks.lora.any_pfl", *options]
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(self.processes)]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        launcher = torchrun if self.processes > 1 else []
        return [sys.executable, *launcher, "-m", "benchmarks.lora.any_ours", *options]


@contextmanager
def started(
    contenders: Sequence[Contender], encoders: Sequence[str], arguments: argparse.Namespace, folder: Path
) -> Iterator[list["Waiting"]]:
    """Start all contenders, and end them whatever happens."""
    waiting = [Waiting(contender, contender.command(encoders, arguments, folder)) for contender in contenders]
    try:
        yield waiting
    finally:
        for one in waiting:
            one.end()


class Waiting:
    """A contender's process, which trains a round when it is told to."""

    def __init__(self, contender: Contender, command: Sequence[str]) -> None:
        self.contender = contender
        variables = os.environ | {"OMP_NUM_THREADS": str(contender.threads)}
        self._process = subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def turn(self) -> float:
        """Let it set up an encoder, or train its next round; return the seconds."""
        assert self._process.stdin is not None, "a pipe was asked for"
        assert self._process.stdout is not None, "a pipe was asked for"
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.contender.name} ended with code {self._process.wait()}")
        return float(json.loads(line))

    def end(self) -> None:
        """Let it end by itself, as it does after its last round and where nobody tells it more."""
        self._process.communicate()


def difference(folder: Path, name: str, reference: str) -> float:
    """The norm of two contenders' difference after a round, over that of the reference's change in it."""

    def vector(name: str) -> np.ndarray:
        files = ("adapter_model.safetensors", "head.safetensors")
        found = {f"{file} {key}": value for file in files for key, value in load_file(folder / name / file).items()}
        return np.concatenate([found[key].astype(np.float64).ravel() for key in sorted(found)])

    theirs = vector(reference)
    return float(np.linalg.norm(vector(name) - theirs) / np.linalg.norm(theirs - vector("start")))


def measure(waiting: Sequence[Waiting], turns: int) -> dict[str, list[float]]:
    """Every contender's seconds in the turns after the first, all of them being set up before."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for one in waiting:
        one.turn()
    for turn in range(turns + 1):
        for place in range(len(waiting)):
            one = waiting[(place + turn) % len(waiting)]
            seconds[one.contender.name].append(one.turn())
    return {name: found[1:] for name, found in seconds.items()}


def row(encoder: str, seconds: dict[str, list[float]], apart: float, num_clients: int) -> str:
    """A line of the table: each program's best clients per second, and the ratios."""
    best = {
        program: min((name for name in seconds if name.startswith(program)), key=lambda name: median(seconds[name]))
        for program in (OURS, PFL)
    }
    pairs = {ALONE: (f"{OURS} 1x1", f"{ALONE} 1x1"), PFL: (best[OURS], best[PFL])}
    cells = []
    for goal, names in pairs.items():
        ratio = median(other / mine for mine, other in zip(*(seconds[name] for name in names), strict=True))
        rates = [f"{num_clients / median(seconds[name]):.1f} ({name.rpartition(' ')[2]})" for name in names]
        cells += [*rates, f"{ratio:.2f}", "yes" if ratio >= GOALS[goal] else "NO"]
    return f"| {encoder} | {' | '.join(cells)} | {apart:.0e} |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--encoders", nargs="+", choices=[*ENCODERS, PLAIN], default=[*ENCODERS, PLAIN])
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--before", default=BEFORE, help="commit or checkout")
    parser.add_argument("--peers-python", default=".venv-bench/bin/python", help="of requirements-bench.txt")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    if not Path(arguments.peers_python).is_file():
        parser.error(f"--peers-python: found no {arguments.peers_python}; benchmarks/README.md says how to make it")
    return arguments


def any_networks(names: Sequence[str], arguments: argparse.Namespace) -> float:
    """Print a row for each encoder, and return by how much factors differ at most."""
    settings = [(1, 1)] if arguments.clock == "cpu" else [(1, 1), (1, 2), (2, 1)]
    contenders = [Contender(ALONE, 1, 1, 1)]
    for processes, threads in settings:
        contenders.append(Contender(OURS, processes, threads, -(-arguments.clients // processes)))
        contenders.append(Contender(PFL, processes, threads, 1))
    titles = ["clients per second: block", ALONE, "ratio", "1.5 or more", "fedsim, best", "pfl, best", "ratio"]
    titles += ["1.3 or more", "factors differ by"]
    furthest = 0.0
    with tempfile.TemporaryDirectory(prefix="fedsim-") as scratch:
        folder = Path(scratch)
        with open_group() as group:
            prepare(folder, arguments.clients, arguments.batch, group)
        print(f"| encoder | {' | '.join(titles)} |\n|{'---|' * (len(titles) + 1)}")
        with started(contenders, names, arguments, folder) as waiting:
            for encoder in names:
                seconds = measure(waiting, arguments.turns)
                found = max(difference(folder / encoder, one.name, f"{OURS} 1x1") for one in contenders)
                furthest = max(furthest, found)
                print(row(encoder, seconds, found, arguments.clients), flush=True)
    return furthest


def main() -> int:
    arguments = parse()
    names = [name for name in arguments.encoders if name != PLAIN]
    print(json.dumps(description()))
    furthest = any_networks(names, arguments) if names else 0.0
    if PLAIN in arguments.encoders:
        print(f"\nThe plain ViT, seconds of this beside {arguments.before}; 1.03 or less:")
        beside(arguments.before, ["small_fp32", "small_bf16"], 5)
    if furthest > FP32_LIMIT:
        print(f"factors differ by {furthest:.1e} of their change; expected at most {FP32_LIMIT:g}")
    return int(furthest > FP32_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
