"""This checkout beside another one, in turns: is anything slower than it was?

    .venv/bin/python -m benchmarks.beside OTHER [--turns 5] [--cases small_fp32 ...]

OTHER is the root of a checkout, or a commit of this one's. Both run under this one's Python, with one process of one
thread. A turn starts every case once in each, and the one that is first changes from turn to turn. Printed are the
medians over the turns and their ratio, this / other.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.machine import description

HERE = Path(__file__).resolve().parent.parent
Seconds = dict[str, float]


def start(checkout: Path, *words: str) -> float:
    """Run this Python in a checkout and return the seconds that it took."""
    before = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
    subprocess.run([sys.executable, *words], cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - before


def contender(precision: str) -> Callable[[Path, Path], Seconds]:
    """Rounds of the regime ``small``, trained from arrays in memory."""

    def measure(checkout: Path, folder: Path) -> Seconds:
        out = folder / "report"
        words = ("--regime", "small", "--precision", precision, "--rounds", "5", "--out", str(out))
        start(checkout, "-m", "benchmarks.contenders.ours", *words)
        report = json.loads(out.with_suffix(".json").read_text())
        return {"round": median(report["seconds_per_round"]), "start-up": report["startup_s"]}

    return measure


def experiment(config: str) -> Callable[[Path, Path], Seconds]:
    """A whole run of one round, as users start it; what is no round is start-up, evaluation and writing."""

    def measure(checkout: Path, folder: Path) -> Seconds:
        out = folder / "run"
        whole = start(checkout, "launch.py", "run", f"configs/{config}.yaml", "rounds=1", "--out", str(out))
        rows = [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()]
        rounds = sum(row["seconds"] for row in rows)
        return {"round": rounds, "the rest": whole - rounds}

    return measure


CASES = {
    "small_fp32": contender("fp32"),
    "small_bf16": contender("bf16"),
    "quickstart": experiment("quickstart"),
    "prrfl": experiment("prrfl_brain_mri"),
}


@contextmanager
def checkout_of(other: str) -> Iterator[Path]:
    """The root of a checkout, or the files of a commit of this one's in a folder that is removed again."""
    if Path(other).is_dir():
        yield Path(other).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="fedsim-") as folder:
        packed = subprocess.run(["git", "archive", other], cwd=HERE, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=packed, check=True)
        yield Path(folder)


def beside(other: str, cases: Sequence[str], turns: int) -> None:
    """Measure cases in both checkouts, in turns, and print the table."""
    seconds: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with checkout_of(other) as place:
        checkouts = {"this": HERE, "other": place}
        for turn in range(turns):
            for case in cases:
                for name in sorted(checkouts, reverse=turn % 2 == 0):
                    with tempfile.TemporaryDirectory(prefix="fedsim-") as folder:
                        for what, value in CASES[case](checkouts[name], Path(folder)).items():
                            seconds[case, what][name].append(value)
            print(f"turn {turn + 1} of {turns}", file=sys.stderr)
    print("| case | seconds of | this | other | ratio |\n|---|---|---|---|---|")
    for (case, what), found in seconds.items():
        this, that = (median(found[name]) for name in ("this", "other"))
        print(f"| {case} | {what} | {this:.3f} | {that:.3f} | {this / that:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("other", help="root of the other checkout, or a commit")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    print(json.dumps(description()))
    beside(arguments.other, arguments.cases, arguments.turns)


if __name__ == "__main__":
    main()
