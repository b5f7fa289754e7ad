"""DEeR beside its baselines under record-level differential privacy: four methods, with and without noise, three seeds.

    .venv/bin/python -m benchmarks.deer_table [--jobs 2]
    .venv/bin/python -m benchmarks.deer_table --epsilons none                # the rows without noise alone
    .venv/bin/python -m benchmarks.deer_table --choose                       # bounds, by validation, for other seeds
    .venv/bin/python -m benchmarks.deer_table --epsilons none rounds=1 ...   # a trial: changes of every run's config

Every run is launch.py with configs/quickstart.yaml (packaged brain MRI, 12 clients, Dirichlet 0.1, a pretrained small
transformer) on smaller images for more rounds. All clients train in each round; DEeR trains twice a round, as in its
paper. A run's figures are its last round's, so that no image is used to choose a round; DP-DyLoRA chooses its rank on
the validation images. The deviation is the mean of ``aggregation_deviation`` over all phases of all rounds.

Prints the table as Markdown and, but for a trial, writes benchmarks/results/deer_table.json. The whole takes about a
quarter of an hour on two cores, and longer where others use them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.machine import description

METHODS = {"DEeR": "deer", "FedIT": "fedavg", "FFA-LoRA": "ffa_lora", "DP-DyLoRA": "dp_dylora"}
SEEDS, CHOICE_SEEDS = (10, 100, 1000), (1, 2)
EPSILONS = ("none", "8", "3")
# Below one over the 775 training images.
DELTA = 0.001
BOUND, BOUNDS, CHOICE_EPSILON = 1.0, (0.3, 1.0, 3.0), "3"
ROUNDS = 5
CHANGES = (f"rounds={ROUNDS}", f"evaluate.every={ROUNDS}", "data.image_size=42")
COLUMNS = ("balanced accuracy", "AUROC", "aggregation deviation")
RESULTS = Path(__file__).parent / "results" / "deer_table.json"


def privacy(epsilon: str, bound: float) -> str:
    """Return the change of a config for an epsilon of the whole run, or for none."""
    if epsilon == "none":
        return "privacy=null"
    mechanism = f"{{name: record, bound: {bound}}}"
    return f"privacy={{mechanism: {mechanism}, epsilon: {float(epsilon)}, delta: {DELTA}}}"


def run(method: str, epsilon: str, seed: int, parent: Path, changes: Sequence[str], bound: float = BOUND) -> Path:
    """Train, or resume, one run with one thread and return its folder."""
    name = "-".join([method, epsilon, *([] if epsilon == "none" else [f"{bound:g}"]), str(seed)])
    words = [f"algorithm.name={method}", f"seed={seed}", privacy(epsilon, bound), *CHANGES, *changes]
    command = [sys.executable, "launch.py", "run", "configs/quickstart.yaml", *words]
    command += ["--out", str(parent / name), "--resume"]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    return parent / name


def read(folder: Path, table: str) -> list[dict[str, Any]]:
    """Return the rows of a table of a run folder."""
    return [json.loads(line) for line in (folder / f"{table}.jsonl").read_text().splitlines()]


def figures(metrics: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return a run's number for each of ``COLUMNS``, from its rows of metrics.jsonl."""
    test = metrics[-1]["test"]
    key = "aggregation_deviation"
    phases = [phase for row in metrics for phase in row["diagnostics"].values() if isinstance(phase, dict)]
    return [
        test["balanced_accuracy"],
        test["auroc"],
        mean(phase[key] for phase in phases if phase.get(key) is not None),
    ]


def result(folder: Path, seed: int) -> dict[str, Any]:
    """Return a run's figures, its seconds and its state's digest, and the ranks that validation chose, if any."""
    metrics = read(folder, "metrics")
    ranks = [row["diagnostics"]["rank"] for row in metrics if "rank" in row["diagnostics"]]
    return {
        "seed": seed,
        "seconds_of_rounds": sum(row["seconds"] for row in read(folder, "timings")),
        "epsilon": metrics[-1].get("epsilon"),
        "state_sha256": json.loads((folder / "results.json").read_text())["state_sha256"],
        **({"rank": ranks[-1]} if ranks else {}),
        **dict(zip(COLUMNS, figures(metrics), strict=True)),
    }


def table(
    parent: Path, pool: ThreadPoolExecutor, epsilons: Sequence[str], changes: Sequence[str]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Print the table and return every run's ``result``, by epsilon and method."""
    cases = [(m, epsilon, seed) for seed in SEEDS for epsilon in epsilons for m in METHODS.values()]
    futures = {case: pool.submit(run, *case, parent, changes) for case in cases}
    print(f"| epsilon | method | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 2)}")
    found: dict[str, dict[str, list[dict[str, Any]]]] = {epsilon: {} for epsilon in epsilons}
    for epsilon in epsilons:
        for title, method in METHODS.items():
            rows = [result(futures[method, epsilon, seed].result(), seed) for seed in SEEDS]
            found[epsilon][method] = rows
            print(f"| {epsilon} | {title} | {' | '.join(cells(rows))} |", flush=True)
    return found


def cells(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return mean and standard deviation over the seeds of each of ``COLUMNS``."""
    columns = [[row[name] for row in rows] for name in COLUMNS]
    return [f"{mean(values):.3f} ± {stdev(values):.3f}" for values in columns]


def choose(parent: Path, pool: ThreadPoolExecutor, changes: Sequence[str]) -> None:
    """Print each method's balanced accuracy on validation for every bound, one number for each seed."""
    cases = [(m, bound, seed) for seed in CHOICE_SEEDS for m in METHODS.values() for bound in BOUNDS]
    futures = {(m, b, seed): pool.submit(run, m, CHOICE_EPSILON, seed, parent, changes, b) for m, b, seed in cases}
    print(f"| method | {' | '.join(f'{bound:g}' for bound in BOUNDS)} |\n|{'---|' * (len(BOUNDS) + 1)}")
    for title, method in METHODS.items():
        scores = []
        for bound in BOUNDS:
            rows = [read(futures[method, bound, seed].result(), "metrics")[-1] for seed in CHOICE_SEEDS]
            scores.append(" and ".join(f"{row['val']['balanced_accuracy']:.3f}" for row in rows))
        print(f"| {title} | {' | '.join(scores)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("changes", nargs="*", help="key=value for every run, for a trial")
    parser.add_argument("--choose", action="store_true", help=f"compare bounds at epsilon {CHOICE_EPSILON}")
    parser.add_argument("--epsilons", nargs="+", choices=EPSILONS, default=EPSILONS, help="rows of the table")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/deer_table"), help="folder of the runs")
    arguments = parser.parse_intermixed_args()
    started = time.perf_counter()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        if arguments.choose:
            choose(arguments.out, pool, arguments.changes)
            return
        found = table(arguments.out, pool, arguments.epsilons, arguments.changes)
    seconds = time.perf_counter() - started
    print(f"{arguments.jobs} runs at a time: {seconds:.0f} seconds")
    if not arguments.changes and tuple(arguments.epsilons) == EPSILONS:
        words = {"delta": DELTA, "bound": BOUND, "changes": CHANGES, "seconds": seconds}
        RESULTS.write_text(json.dumps({"machine": description(), **words, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
