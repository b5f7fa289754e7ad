"""The HarmoFL table in docs/harmofl.md: four methods on the four sites of the packaged cells, three seeds each.

    .venv/bin/python -m benchmarks.harmofl_table [--choose] [--jobs 2]

Every run is launch.py with one of the four configs/*_cells.yaml. A run's round is the one with the best mean Dice of
the cells over the clients' validation images; its test images give the figures. A site's figure is that of its client's
own model, the one it goes on with after the communication; the last one is the server's model over all sites' images.
Writes benchmarks/results/harmofl.json.

``--choose`` compares learning rates instead: the best validation Dice of each method for two seeds that the table does
not use.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.machine import description

METHODS = {"HarmoFL": "harmofl", "FedAvg": "fedavg", "FedBN": "fedbn", "local, no federation": "local"}
SEEDS, CHOICE_SEEDS = (10, 11, 12), (1, 2)
RATES = (0.003, 0.01)
SITES = ("HeLa", "bacteria", "CHO", "DSB2018")
COLUMNS = ("mean of the sites", "worst site", *SITES, "server's model, all images")
RESULTS = Path(__file__).parent / "results" / "harmofl.json"


def run(method: str, seed: int, parent: Path, *changes: str) -> Path:
    """Train, or resume, one run with one thread and return its folder."""
    folder = parent / "-".join([method, str(seed), *changes])
    command = [sys.executable, "launch.py", "run", f"configs/{method}_cells.yaml", f"seed={seed}", *changes]
    command += ["--out", str(folder), "--resume"]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    return folder


def read(folder: Path, table: str) -> list[dict[str, Any]]:
    """The rows of a table of a run folder in which clients were measured, or all of timings."""
    rows = [json.loads(line) for line in (folder / f"{table}.jsonl").read_text().splitlines()]
    return [row for row in rows if table == "timings" or "own" in row or "clients" in row.get("diagnostics", {})]


def validation(row: dict[str, Any]) -> float:
    """The mean over clients of the Dice on their own validation images, in a row of metrics.jsonl."""
    dice: float = row["diagnostics"]["clients"]["val"]["dice"]["after"]["mean"]
    return dice


def figures(metrics: Sequence[dict[str, Any]], clients: Sequence[dict[str, Any]]) -> list[float]:
    """Choose the round by validation and return a number for each of ``COLUMNS``."""
    best = max(metrics, key=validation)
    rows = sorted((row for row in clients if row["round"] == best["round"]), key=lambda row: row["client"])
    dice = [row["own"]["after"]["test"]["dice"] for row in rows]
    return [mean(dice), min(dice), *dice, best["test"]["dice"]]


def choose(parent: Path, pool: ThreadPoolExecutor) -> None:
    """Print each method's best validation Dice for every learning rate, one number for each seed."""
    cases = [(method, rate, seed) for seed in CHOICE_SEEDS for method in METHODS.values() for rate in RATES]
    futures = {(m, rate, seed): pool.submit(run, m, seed, parent, f"train.lr={rate}") for m, rate, seed in cases}
    print(f"| method | {' | '.join(f'{rate:g}' for rate in RATES)} |\n|{'---|' * (len(RATES) + 1)}")
    for name, method in METHODS.items():
        cells = []
        for rate in RATES:
            tables = [read(futures[method, rate, seed].result(), "metrics") for seed in CHOICE_SEEDS]
            cells.append(" and ".join(f"{max(map(validation, rows)):.3f}" for rows in tables))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def table(parent: Path, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Print the table and return, for each method and seed, its figures and the seconds of its rounds."""
    # Seed by seed, so that what is there after an interruption compares the methods.
    futures = {(m, seed): pool.submit(run, m, seed, parent) for seed in SEEDS for m in METHODS.values()}
    print(f"| method | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    found: dict[str, Any] = {}
    for name, method in METHODS.items():
        folders = [futures[method, seed].result() for seed in SEEDS]
        rows = [figures(read(folder, "metrics"), read(folder, "clients")) for folder in folders]
        cells = [f"{mean(column):.3f} ± {stdev(column):.3f}" for column in zip(*rows, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        seconds = [sum(row["seconds"] for row in read(folder, "timings")) for folder in folders]
        found[method] = [
            {"seed": seed, "seconds_of_rounds": taken} | dict(zip(COLUMNS, row, strict=True))
            for seed, taken, row in zip(SEEDS, seconds, rows, strict=True)
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--choose", action="store_true", help="compare learning rates by validation")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/harmofl_table"), help="folder of the runs")
    arguments = parser.parse_args()
    started = time.perf_counter()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        if arguments.choose:
            choose(arguments.out, pool)
            return
        found = table(arguments.out, pool)
    runs = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": runs.ru_utime + runs.ru_stime}
    print(f"{arguments.jobs} runs at a time:", ", ".join(f"{value:.0f} {name}" for name, value in seconds.items()))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": description(), **seconds, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
