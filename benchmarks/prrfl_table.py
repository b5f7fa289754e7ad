"""The PRR-FL table in docs/prrfl.md: methods on the sites of the packaged brain MRI, three seeds each.

    .venv/bin/python -m benchmarks.prrfl_table [--jobs 2]

Every run is launch.py with configs that differ in the method alone. A run's round is the one with
the best mean macro-F1 over the clients' validation images; its test images give the figures. A client's figure is
that of the model it goes on with after the communication. The drop is the test macro-F1 before the communication minus
that after it, mean over clients and measured rounds; its second column is about the models that the communication
changes, where those are not what clients use (PRR-FL's deputies).
"""

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

SEEDS = (10, 11, 12)
# Name: the config, and what differs from it.
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "PRR-FL": ("prrfl", ()),
    "PRR-FL, stages by training images": ("prrfl", ("algorithm.decide_on=train",)),
    "FedAvg": ("fedavg", ()),
    "FedProx": ("fedavg", ("algorithm={name: fedprox, mu: 0.01}",)),
    "FedBN": ("fedbn", ()),
    "FedRep": ("fedavg", ("algorithm={name: fedrep}",)),
    "Ditto": ("fedavg", ("algorithm={name: ditto, strength: 0.1}",)),
    "local, no federation": ("local", ()),
}
COLUMNS = (
    *("macro-F1, mean over clients", "macro-F1, worst client", "AUROC, mean over clients"),
    *("drop of the macro-F1", "drop of what is exchanged"),
)


def run(name: str, seed: int, parent: Path) -> dict[str, float]:
    """Train, or resume, one run with one thread and return its row of the table."""
    method, overrides = METHODS[name]
    folder = parent / f"{'-'.join(re.findall('[a-z]+', name.lower()))}-{seed}"
    words = [f"configs/{method}_brain_mri.yaml", f"seed={seed}", *overrides, "--out", str(folder), "--resume"]
    command = [sys.executable, "launch.py", "run", *words]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    diagnostics = [json.loads(line)["diagnostics"] for line in lines]
    return row([found for found in diagnostics if "clients" in found])


def row(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Choose the round by validation and return its test figures; ``rounds``: diagnostics of the measured rounds."""
    best = max(rounds, key=lambda found: found["clients"]["val"]["f1"]["after"]["mean"])["clients"]["test"]
    drop = mean(found["retrogress"]["test"] for found in rounds)
    exchanged = mean(found.get("retrogress_exchanged", found["retrogress"])["test"] for found in rounds)
    f1, auroc = best["f1"]["after"], best["auroc"]["after"]
    return dict(zip(COLUMNS, (f1["mean"], f1["worst"], auroc["mean"], drop, exchanged), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/prrfl_table"), help="folder of the runs")
    arguments = parser.parse_args()
    print(f"| method | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        # Seed by seed, so that what is there after an interruption compares the methods.
        futures = {(name, seed): pool.submit(run, name, seed, arguments.out) for seed in SEEDS for name in METHODS}
        for name in METHODS:
            rows = [futures[name, seed].result() for seed in SEEDS]
            columns = [[found[column] for found in rows] for column in COLUMNS]
            cells = [f"{mean(column):.3f} ± {stdev(column):.3f}" for column in columns]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
