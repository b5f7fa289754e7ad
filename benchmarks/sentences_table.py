"""Accuracy on each kind of the packaged rated sentences, three seeds.

    .venv/bin/python -m benchmarks.sentences_table [--ranks 2]

Every run is launch.py with configs/fedpetuning_sentences.yaml. Its best round by validation accuracy gives the figures,
on the test sentences.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import torch

from comm import open_group
from fedsim.checkpoint import Checkpoints
from fedsim.config import load_config
from fedsim.evaluate import evaluation_rows
from fedsim.simulation import build_simulation

SEEDS = (10, 11, 12)
METHODS = {"FedPETuning, LoRA on the full model": "fedpetuning"}


def run(method: str, seed: int, parent: Path, num_ranks: int) -> dict[str, float]:
    """Train, or resume, one run and return its row of the table."""
    folder = parent / f"{method}-{seed}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    words = ["launch.py", "run", f"configs/{method}_sentences.yaml", f"seed={seed}", "--out", str(folder), "--resume"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, *words], check=True, env=environment, stdout=subprocess.DEVNULL)
    return accuracies(folder)


def accuracies(folder: Path) -> dict[str, float]:
    """Return the accuracy of a run's best state on each site's test sentences, and on all."""
    config = load_config(folder / "config.yaml")
    with open_group() as group:
        saved = Checkpoints(folder / "checkpoints", config, group).load("best")
        assert saved is not None, "the run has finished"
        sim = build_simulation(config, group)
        params = sim.algorithm.evaluate_model(saved.state)
        places, size = sim.dataset.test, config.evaluate.batch_size
        rows = evaluation_rows(sim.task, sim.model, params, sim.images, places, size, group)
    hits = (rows.argmax(1) == sim.dataset.labels[torch.from_numpy(places)]).double()
    assert sim.dataset.sites is not None
    sites = torch.from_numpy(sim.dataset.sites[places])
    found = {name: hits[sites == site].mean().item() for site, name in enumerate(sim.dataset.site_names)}
    return found | {"all": hits.mean().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2, help="ranks of a run, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/sentences_table"), help="folder of the runs")
    arguments = parser.parse_args()
    for name, method in METHODS.items():
        rows = [run(method, seed, arguments.out, arguments.ranks) for seed in SEEDS]
        print(f"| method | {' | '.join(rows[0])} |\n|{'---|' * (len(rows[0]) + 1)}")
        cells = [f"{mean(row[site] for row in rows):.3f} ± {stdev(row[site] for row in rows):.3f}" for site in rows[0]]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
