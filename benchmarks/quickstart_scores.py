"""The scores in the README: quickstart beside its frozen encoder and beside centralised training, three seeds each.

    .venv/bin/python -m benchmarks.quickstart_scores [--data brain_mri] [--jobs 2]

Every run is launch.py with the quickstart config and a few changed keys. Centralised training is one client that
holds all training images, for ten passes over them; quickstart's clients make eight (two phases a round).
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

SEEDS = (10, 11, 12)
ONE_CLIENT = ("algorithm.name=fedavg", "clients.count=1", "clients.partition={name: iid}", "rounds=10")
CONTENDERS = {
    "frozen encoder, trained head, centralised": (*ONE_CLIENT, "model={name: 'packaged:vit_small_dino', train: head}"),
    "LoRA, centralised": (*ONE_CLIENT, "evaluate.every=2"),
    "frozen encoder, trained head, FedAvg, 12 clients": (
        "algorithm.name=fedavg",
        "rounds=10",
        "model={name: 'packaged:vit_small_dino', train: head}",
    ),
    "LoRA, FedAvg, 12 clients": ("algorithm.name=fedavg", "rounds=10", "evaluate.every=2"),
    "LoRA, DEeR, 12 clients (quickstart)": (),
}


def run(folder: Path, changes: tuple[str, ...]) -> dict[str, float]:
    """Train, or resume, one run with one thread and return its test metrics at the best validation round."""
    command = [
        sys.executable,
        "launch.py",
        "run",
        "configs/quickstart.yaml",
        *changes,
        "--out",
        str(folder),
        "--resume",
    ]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    return json.loads((folder / "results.json").read_text())["test"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="brain_mri")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--only", help="contenders whose name contains this text")
    arguments = parser.parse_args()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {}
        for name, changes in CONTENDERS.items():
            if arguments.only and arguments.only not in name:
                continue
            for seed in SEEDS:
                folder = Path("runs") / "scores" / arguments.data / f"{name.replace(' ', '_').replace(',', '')}-{seed}"
                words = (f"data.name={arguments.data}", f"seed={seed}", *changes)
                futures.setdefault(name, []).append(pool.submit(run, folder, words))
        for name, runs in futures.items():
            tests = [future.result() for future in runs]
            columns = [[test[metric] for test in tests] for metric in ("balanced_accuracy", "auroc")]
            cells = [f"{mean(column):.3f} ± {stdev(column):.3f}" for column in columns]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
