"""Seeded kills: runs that are killed again and again, and whether each ends with the bits of one that never was.

    OMP_NUM_THREADS=1 python -m benchmarks.faults.kills                 # 40 kills

A run has 2 or 3 ranks (``--ranks``). One of them, or all of one of two nodes, get SIGKILL: while they start, between
two rounds, while a checkpoint is written, or after the last round. How long it takes until all the others have ended is
measured; who is there after a minute counts as hanging. Then the run is resumed, perhaps by another number of ranks,
and killed again, until it has had its share. Exit code 1 where bits differ or a rank hangs.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import description

ROUNDS = 10
HANG_SECONDS = 60.0
START_SECONDS = 120.0
#: How long after the start a rank is killed that is to be killed while it starts.
EARLY_SECONDS = 5.0
MOMENTS = ("start", "training", "checkpoint", "results")
#: What clients keep, what the server keeps, and what both hold besides: each must survive.
METHODS = ("deer", "fedrep", "ditto", "fedadam")
LOGS = ("metrics.jsonl", "clients.jsonl")
CONFIG = """
name: killed
seed: 3
rounds: {rounds}
algorithm: {{name: {method}}}
model:
  name: timm:vit_tiny_patch16_224
  weights: random
  options: {{patch_size: 7, embed_dim: 32, depth: 2, num_heads: 2}}
  lora: {{r: 2, lora_alpha: 4, target: [q, k, v]}}
data: {{name: digits, image_size: 14, max_train: 200}}
clients: {{count: 7, per_block: 2, partition: {{name: dirichlet, alpha: 0.5}}}}
train: {{lr: 0.05, momentum: 0.9, batch_size: 8, keep_optimizer: true}}
"""


@dataclass(frozen=True)
class Kill:
    """What is done to a start of a run: so many ranks, of which some are killed at some moment.

    ``rounds``: how many more rounds have their rows by then, but for "start" and "results"; ``delay``: seconds after
    that.
    """

    num_ranks: int
    victims: tuple[int, ...]
    moment: str
    rounds: int
    delay: float


@dataclass(frozen=True)
class Outcome:
    """What came of a kill. ``noticed``: seconds until every other rank had ended; None for a hang."""

    rows: int
    has_draft: bool
    noticed: float | None


def draw(stream: random.Random, moment: str) -> Kill:
    """Draw a kill. Of two nodes the first has the ranks 0 and 2, and the second rank 1."""
    num_ranks = stream.choice((2, 3))
    victim, is_node = stream.randrange(num_ranks), stream.random() < 0.4
    victims = tuple(rank for rank in range(num_ranks) if rank == victim or (is_node and rank % 2 == victim % 2))
    delay = stream.uniform(0, {"start": EARLY_SECONDS, "results": 0.05}.get(moment, 0.2))
    return Kill(num_ranks, victims, moment, stream.choice((0, 1, 1, 2)), delay)


def plan(seed: int, count: int) -> Iterator[tuple[str, list[Kill]]]:
    """Yield each run's method and its kills: one at every moment, in an order of its own, the end last."""
    stream = random.Random(seed)
    for number, first in enumerate(range(0, count, len(MOMENTS))):
        moments = [*stream.sample(MOMENTS[:-1], len(MOMENTS) - 1), MOMENTS[-1]]
        yield METHODS[number % len(METHODS)], [draw(stream, moment) for moment in moments[: count - first]]


def start(config: Path, out: Path, num_ranks: int, log: Path) -> "subprocess.Popen[bytes]":
    """Start a run, which goes on where its folder has one, by the process that starts its ranks."""
    words = ["run", str(config), "--out", str(out), "--resume", "--ranks", str(num_ranks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("ab") as said:
        return subprocess.Popen([sys.executable, "launch.py", *words], env=environment, stdout=said, stderr=said)


def ranks_of(starter: int) -> dict[int, int]:
    """Return the processes of a starter's ranks, by rank."""
    found = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{starter}/task/{starter}/children").read_text().split():
            rank = re.search(rb"\0RANK=(\d+)\0", b"\0" + Path(f"/proc/{child}/environ").read_bytes())
            if rank is not None:
                found[int(rank[1])] = int(child)
    return found


def num_rows(out: Path) -> int:
    """Return how many rounds a run has logged."""
    with contextlib.suppress(FileNotFoundError):
        return (out / LOGS[0]).read_bytes().count(b"\n")
    return 0


def has_draft(out: Path) -> bool:
    """Whether a checkpoint is being written, or was when its writer was killed."""
    return any(out.glob("checkpoints/.*.draft"))


def await_moment(kill: Kill, out: Path, starter: "subprocess.Popen[bytes]") -> bool:
    """Wait for the moment of a kill; False where the run has ended before."""
    aim = ROUNDS if kill.moment == "results" else min(num_rows(out) + 1 + kill.rounds, ROUNDS - 1)

    def has_come() -> bool:
        if kill.moment == "start":
            return len(ranks_of(starter.pid)) == kill.num_ranks
        return num_rows(out) >= aim and (kill.moment != "checkpoint" or has_draft(out))

    end = time.monotonic() + START_SECONDS
    while not has_come():
        if starter.poll() is not None:
            return False
        if time.monotonic() > end:
            raise TimeoutError(f"{out}: no {kill.moment} in {START_SECONDS:g} seconds")
        time.sleep(0.0005)
    if kill.moment != "checkpoint":
        time.sleep(kill.delay)
    return starter.poll() is None


def strike(kill: Kill, config: Path, out: Path, log: Path) -> Outcome | None:
    """Start a run and kill some of its ranks; None where it was at its end before."""
    starter = start(config, out, kill.num_ranks, log)
    ranks: dict[int, int] = {}
    try:
        if not await_moment(kill, out, starter):
            return None
        ranks = ranks_of(starter.pid)
        for victim in kill.victims:
            if victim in ranks:
                os.kill(ranks[victim], signal.SIGKILL)
        struck = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            starter.wait(HANG_SECONDS)
        seconds = time.monotonic() - struck
        if starter.returncode == 0:
            return None
        left = [process for process in ranks.values() if Path(f"/proc/{process}").exists()]
        is_over = starter.returncode is not None and not left
        return Outcome(num_rows(out), has_draft(out), seconds if is_over else None)
    finally:
        for process in [starter.pid, *ranks.values()] if starter.poll() is None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        starter.wait()


def finish(config: Path, out: Path, num_ranks: int, log: Path) -> None:
    """Run to the end; RuntimeError where a rank fails."""
    code = start(config, out, num_ranks, log).wait(START_SECONDS)
    if code != 0:
        raise RuntimeError(f"exit code {code}; see {log}:\n{log.read_text()[-2000:]}")


def is_same(one: Path, other: Path) -> bool:
    """Whether two runs have the same results, ``state_sha256`` among them, and the same log."""
    one_results, other_results = (json.loads((run / "results.json").read_text()) for run in (one, other))
    return one_results == other_results and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in LOGS
    )


def play(seed: int, count: int, folder: Path) -> tuple[list[Outcome], int, int]:
    """Kill ``count`` times and tell each; return the outcomes, and how many of how many runs have the same bits."""
    outcomes: list[Outcome] = []
    num_same = num_runs = 0
    print(f"{'run':14} {'ranks':5} {'killed':7} {'moment':10} {'rows':>4} {'draft left':10} {'noticed after':>13}")
    for number, (method, kills) in enumerate(plan(seed, count)):
        config, whole, out = folder / f"{method}.yaml", folder / f"{method}_whole", folder / f"{number}_{method}"
        log = folder / f"{out.name}.log"
        if not whole.exists():
            config.write_text(CONFIG.format(method=method, rounds=ROUNDS))
            finish(config, whole, 1, log)
        for kill in kills:
            outcome = strike(kill, config, out, log)
            if outcome is not None:
                outcomes.append(outcome)
            told = "at its end" if outcome is None else f"{outcome.rows:4} {'yes' if outcome.has_draft else 'no':10}"
            seconds = "" if outcome is None else "HANGS" if outcome.noticed is None else f"{outcome.noticed:.2f} s"
            victims = "+".join(map(str, kill.victims))
            print(f"{out.name:14} {kill.num_ranks:5} {victims:7} {kill.moment:10} {told} {seconds:>13}", flush=True)
        finish(config, out, 1 + number % 3, log)
        num_runs += 1
        num_same += is_same(out, whole)
    return outcomes, num_same, num_runs


def main() -> int:
    """Play the kills and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40, help="kills")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        outcomes, num_same, num_runs = play(words.seed, words.count, Path(folder))
    seconds = [outcome.noticed for outcome in outcomes if outcome.noticed is not None]
    num_hangs = len(outcomes) - len(seconds)
    print(f"{len(outcomes)} kills, {sum(outcome.has_draft for outcome in outcomes)} with a draft of a checkpoint left")
    print(f"{num_same} of {num_runs} runs resumed to the same state_sha256, results and log; {num_hangs} hangs")
    print(f"slowest to notice: {max(seconds, default=0):.2f} s")
    about = description()
    print(f"commit {about['commit'][:10]}, {about['cpu']}, {about['cores']} cores, torch {about['versions']['torch']}")
    return int(num_same < num_runs or num_hangs > 0)


if __name__ == "__main__":
    sys.exit(main())
