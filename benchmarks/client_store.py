"""What clients' states cost in memory: PRR-FL on the slim VGG16, 2 models per client, under several budgets.

    python -m benchmarks.client_store [--clients 500] [--host-gib 0 1 null]

Every run is launch.py in a process of its own: one round, one local step. Peak memory is what the process itself
holds (RssAnon), without files that the system keeps in memory; with --host-gib 0 it is the working set alone. The
checkpoint and the files of the states that do not fit take 20 MB per client each, in --folder. Ends with an error
where two budgets give different states.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import yaml

CONFIG = {
    "name": "client_store",
    "seed": 1,
    "rounds": 1,
    "algorithm": {"name": "prrfl"},
    "model": {"name": "fedsim:vgg16_slim", "weights": "random"},
    "train": {"lr": 0.01, "batch_size": 4, "steps": 1},
}
POLL_SECONDS = 0.05


class Measured(NamedTuple):
    """One run: digest over the server's and all clients' states, peak of the process's own memory, seconds."""

    digest: str
    peak_bytes: int
    seconds: float


def measure(folder: Path, num_clients: int, host_gib: str) -> Measured:
    """Run once and remove what it wrote."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    clients = {"count": num_clients, "partition": {"name": "iid"}}
    # Two or three images each: few enough to be quick, and no batch of one, which BatchNorm could not take.
    data = {"name": "digits", "image_size": 32, "max_train": 3 * num_clients}
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"clients": clients, "data": data}))
    words = ["launch.py", "run", folder / "config.yaml", f"store.host_gib={host_gib}", "--out", folder / "run"]
    started, peak = time.perf_counter(), 0
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while process.poll() is None:
        peak = max(peak, own_memory(process.pid))
        time.sleep(POLL_SECONDS)
    _, complaint = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"host_gib {host_gib}: exit code {process.returncode}\n{complaint.decode()}")
    digest = json.loads((folder / "run" / "results.json").read_text())["state_sha256"]
    shutil.rmtree(folder)
    return Measured(digest, peak, time.perf_counter() - started)


def own_memory(pid: int) -> int:
    """Bytes of a process's pages that belong to no file; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except ProcessLookupError:
        return 0
    kib = [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")]
    return 1024 * sum(kib)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--host-gib", nargs="+", default=["0", "1", "null"])
    parser.add_argument("--folder", type=Path, default=Path("runs/client_store"))
    arguments = parser.parse_args()
    print("| host_gib | peak MiB | above the first, MiB | seconds | state |")
    print("|---|---|---|---|---|", flush=True)
    runs: list[Measured] = []
    for host_gib in arguments.host_gib:
        runs.append(measure(arguments.folder, arguments.clients, host_gib))
        peak, above = (size / 2**20 for size in (runs[-1].peak_bytes, runs[-1].peak_bytes - runs[0].peak_bytes))
        print(
            f"| {host_gib} | {peak:,.0f} | {above:,.0f} | {runs[-1].seconds:.0f} | {runs[-1].digest[:12]} |", flush=True
        )
    if len({run.digest for run in runs}) > 1:
        raise SystemExit("the states differ")


if __name__ == "__main__":
    main()
