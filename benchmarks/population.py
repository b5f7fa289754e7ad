"""What a population costs: the same round of 1,000 clients out of a thousand, a hundred thousand and a million.

    python -m benchmarks.population [--clients 1000 100000 1000000] [--rounds 60]

Every run is launch.py in a process of its own, on the same made-up images in memory, of which each client has two. Peak
memory is the process's (ru_maxrss), libraries and images included, and comes while the images are read; beyond the
index is that without what says whose the images are; in rounds is what is held at a round's end. Start-up is from the
start of the process to the first round. Seconds per round are the median of all rounds but the first and the last,
which is followed by the only evaluation. Ends with an error where memory beyond the index, or the seconds per round,
differ by more than a tenth.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import yaml

from benchmarks.machine import description
from fedsim.config.data import DataConfig
from fedsim.data import Source

PER_CLIENT = 2
MOST_CLIENTS = 1_000_000
HELD_OUT = 1000
SIDE = 8
#: A client's images and its place among them; 8 bytes each, see ``fedsim/data/client_images.py``.
INDEX_BYTES = 8 * PER_CLIENT + 16
TOLERANCE = 0.1
CONFIG = {
    "name": "population",
    "seed": 1,
    "algorithm": {"name": "fedavg"},
    "model": {
        "name": "timm:vit_tiny_patch16_224",
        "weights": "random",
        "options": {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
        "lora": {"r": 2, "lora_alpha": 4, "target": ["q", "k", "v"]},
    },
    # Augmented, so that the images of few clients cannot be prepared once for all rounds.
    "data": {"name": "benchmarks.population.made_up", "image_size": SIDE, "augment": ["flip"]},
    "train": {"optimizer": "sgd", "lr": 0.05, "batch_size": PER_CLIENT, "epochs": 1},
}


def made_up(config: DataConfig) -> Source:
    """Return grey noise of two classes, one brighter: more than a million clients need, so that some is always left."""
    stream = np.random.default_rng(0)
    count = MOST_CLIENTS * PER_CLIENT * 21 // 20 + 2 * HELD_OUT
    images = stream.integers(0, 200, (count, 1, config.image_size, config.image_size), dtype=np.uint8)
    labels = stream.integers(0, 2, count)
    images += 40 * labels[:, None, None, None].astype(np.uint8)
    fixed = np.zeros(count, np.int64)
    fixed[-2 * HELD_OUT : -HELD_OUT], fixed[-HELD_OUT:] = 1, 2
    return Source(images, labels, ("dark", "bright"), fixed=fixed)


class Measured(NamedTuple):
    """One run: memory at its peak and at a round's end, seconds until the first round and of a round, bytes on disk."""

    peak_bytes: int
    round_bytes: int
    start_seconds: float
    round_seconds: float
    folder_bytes: int


def measure(folder: Path, num_clients: int, num_rounds: int) -> Measured:
    """Run once and remove what it wrote."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = CONFIG | {
        "rounds": num_rounds,
        "data": {**CONFIG["data"], "max_train": PER_CLIENT * num_clients},  # type: ignore[dict-item]  # a section
        "clients": {"count": num_clients, "per_round": 1000, "partition": {"name": "iid"}},
        "evaluate": {"every": num_rounds},
        "checkpoint": {"every": num_rounds},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(words))
    command = [sys.executable, "launch.py", "run", str(folder / "config.yaml"), "--out", str(folder / "run")]
    started, first, resident = time.perf_counter(), None, 0
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None, "a pipe was asked for"
    for line in process.stdout:
        if f"/{num_rounds} " in line:
            first = first or time.perf_counter()
            resident = max(resident, resident_bytes(process.pid))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or first is None:
        raise SystemExit(f"{num_clients} clients: exit code {process.returncode}")
    rows = [json.loads(line) for line in (folder / "run" / "timings.jsonl").read_text().splitlines()]
    written = sum(path.stat().st_size for path in (folder / "run").rglob("*") if path.is_file())
    shutil.rmtree(folder)
    seconds = [row["seconds"] for row in rows]
    peak = usage.ru_maxrss * 1024
    return Measured(peak, resident, first - started - seconds[0], median(seconds[1:-1]), written)


def resident_bytes(pid: int) -> int:
    """Return what a process holds in memory; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1000, 100_000, MOST_CLIENTS])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path("runs/population"))
    words = parser.parse_args()
    machine = description()
    print(f"{machine['cpu']}, commit {machine['commit']}, torch {machine['versions']['torch']}\n")
    names = ["clients", "peak MiB", "index MiB", "bytes per client", "beyond the index MiB"]
    names += ["in rounds MiB", "start-up s", "s per round", "run folder MB"]
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|", flush=True)
    beyond, rounds = [], []
    for count in words.clients:
        found = measure(words.folder, count, words.rounds)
        index = INDEX_BYTES * count
        beyond.append(found.peak_bytes - index)
        rounds.append(found.round_seconds)
        in_mib = [size / 2**20 for size in (found.peak_bytes, index, beyond[-1], found.round_bytes)]
        cells = "| {:,} | {:,.0f} | {:,.1f} | {} | {:,.0f} | {:,.0f} | {:.1f} | {:.3f} | {:.1f} |"
        times = (found.start_seconds, found.round_seconds, found.folder_bytes / 1e6)
        print(cells.format(count, *in_mib[:2], INDEX_BYTES, *in_mib[2:], *times), flush=True)
    for what, values in (("memory beyond the index", beyond), ("seconds per round", rounds)):
        spread = max(values) / min(values) - 1
        print(f"\n{what}: the largest is {spread:.1%} above the smallest")
        if spread > TOLERANCE:
            raise SystemExit(f"{what} differ by more than {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
