"""What ``launch.py plan`` predicts of a round on 1, 2 and 4 ranks, beside what is measured then.

    python -m benchmarks.plan [CONFIG] [KEY=VALUE]... [--ranks 1 2 4] [--rounds 6]

Calibrates once, then runs launch.py with every number of ranks, evaluated in its last round alone. Seconds are the
median over all rounds but the first and the last; memory is the largest peak (VmHWM) of a rank. Ends with an error
where a prediction of seconds misses by a fifth or more.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.machine import description
from fedsim.runfolder.trust import load_own
from fedsim.verbs.planning.describe import calibrate, forecast

TOLERANCE = 0.2
POLL_SECONDS = 0.2
MIB = 2**20


class Measured(NamedTuple):
    """Seconds of a round, and of a rank the peak of its memory and the bytes that it brings to a round's meetings."""

    seconds: float
    rank_bytes: int
    sent_bytes: int


def measure(config: Path, overrides: list[str], ranks: int, folder: Path) -> Measured:
    """Run once and remove what it wrote."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        sys.executable,
        "launch.py",
        "run",
        "--ranks",
        str(ranks),
        "--out",
        str(folder),
        "--",
        str(config),
        *overrides,
    ]
    peaks = [0]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watcher = threading.Thread(target=watch, args=(process, peaks))
    watcher.start()
    process.wait()
    watcher.join()
    if process.returncode != 0:
        raise SystemExit(f"{ranks} ranks: exit code {process.returncode}")
    rows = [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()][1:-1]
    shutil.rmtree(folder)
    return Measured(
        median(row["seconds"] for row in rows), peaks[0], int(median(row["wire_bytes_sent"] for row in rows))
    )


def watch(process: "subprocess.Popen[bytes]", peaks: list[int]) -> None:
    """Keep the largest VmHWM of the ranks, the children of the process, until it ends."""
    while process.poll() is None:
        peaks[0] = max([peaks[0], *(high_water(child) for child in children(process.pid))])
        time.sleep(POLL_SECONDS)


def children(pid: int) -> list[int]:
    """Return the children of a process; none when it is gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def high_water(pid: int) -> int:
    """Return a process's largest resident memory in bytes; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/quickstart.yaml"))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--folder", type=Path, default=Path("runs/plan"))
    words = parser.parse_intermixed_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    machine = description()
    print(f"{machine['cpu']}, {machine['cores']} cores, commit {machine['commit']}\n")
    overrides = [*words.overrides, f"rounds={words.rounds}", f"evaluate.every={words.rounds}"]
    config = load_own(words.config, overrides)
    found = calibrate(words.config, overrides, max(words.ranks))
    names = ("seconds a round", "MiB of a rank", "bytes to the others")
    print(f"| ranks | {' | '.join(f'{name}, predicted | measured | error' for name in names)} |")
    print("|---" * (1 + 3 * len(names)) + "|", flush=True)
    errors = []
    for ranks in words.ranks:
        want = forecast(found, config, ranks, 1, None)
        got = measure(words.config, overrides, ranks, words.folder)
        pairs = [(want.seconds, got.seconds), (want.rank_bytes / MIB, got.rank_bytes / MIB)]
        pairs.append((want.sent_bytes, got.sent_bytes))
        cells = [f"{one:,.4g} | {other:,.4g} | {one / other - 1 if other else 0:+.0%}" for one, other in pairs]
        errors.append(abs(want.seconds / got.seconds - 1))
        print(f"| {ranks} | {' | '.join(cells)} |", flush=True)
    if max(errors) >= TOLERANCE:
        raise SystemExit(f"a prediction of seconds misses by {max(errors):.0%}")


if __name__ == "__main__":
    main()
