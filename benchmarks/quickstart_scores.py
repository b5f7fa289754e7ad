"""The scores in docs/results.md: quickstart, its frozen encoder and centralised training, three seeds each.

    .venv/bin/python -m benchmarks.quickstart_scores [--data brain_mri dermoscopy_pairs] [--jobs 2]

Every run is launch.py with the quickstart config and a few changed keys. Where a contender has several settings,
the one with the best validation score on seeds 1 and 2 is taken; the test scores are those of seeds 10, 11 and 12,
which the choice never saw. LoRA trained centrally has one setting, so the comparison leans to the frozen encoder.
Centralised training is one client that holds all training images. Finished runs are read, not repeated.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

TUNING_SEEDS, SEEDS = (1, 2), (10, 11, 12)
HEAD_ONLY = "model={name: 'packaged:vit_small_dino', train: head}"
ONE_CLIENT = ("algorithm.name=fedavg", "clients.count=1", "clients.partition={name: iid}")


@dataclass(frozen=True)
class Contender:
    """``settings``: what is tried on the tuning seeds; ``always``: the changes that make the contender."""

    name: str
    data: str
    always: tuple[str, ...]
    settings: tuple[str, ...]

    def folder(self, setting: str, seed: int) -> Path:
        words = f"{self.name} {setting}".replace("train=", "")
        plain = "".join(letter if letter.isalnum() or letter == "." else "_" for letter in words)
        return Path("runs") / "scores" / self.data / plain / str(seed)


def contenders(data: str) -> list[Contender]:
    """Return the contenders on one data set; DEeR runs on quickstart's own."""
    own = "train={optimizer: adamw, lr: 0.002, batch_size: 10}"
    heads = ["train={optimizer: adamw, lr: 0.001, batch_size: 10}"]
    heads += [f"train={{optimizer: sgd, momentum: 0.9, lr: {lr}, batch_size: 10}}" for lr in (0.001, 0.003)]
    tries = (
        (0.001, "{name: constant}"),
        (0.001, "{name: cosine, final: 0.05}"),
        (0.002, "{name: cosine, final: 0.05}"),
    )
    federated = [f"train={{optimizer: adamw, lr: {lr}, batch_size: 10, schedule: {name}}}" for lr, name in tries]
    found = [
        Contender(
            "frozen encoder, trained head, centralised", data, (*ONE_CLIENT, "rounds=40", HEAD_ONLY), tuple(heads)
        ),
        Contender("LoRA, centralised", data, (*ONE_CLIENT, "rounds=4"), (own,)),
    ]
    if data == "brain_mri":
        found.append(Contender("LoRA, DEeR, 12 clients (quickstart)", data, (), tuple(federated)))
    return found


def run(contender: Contender, setting: str, seed: int) -> dict[str, dict[str, float]]:
    """Train, or resume, one run with one thread; return its results at the best validation round."""
    folder = contender.folder(setting, seed)
    changes = (f"data.name={contender.data}", f"seed={seed}", *contender.always, setting)
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
    if not (folder / "results.json").exists():
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    results: dict[str, dict[str, float]] = json.loads((folder / "results.json").read_text())
    return results


def choose(contender: Contender, pool: ThreadPoolExecutor) -> str:
    """Return the setting with the best validation score, printing every one's."""
    if len(contender.settings) == 1:
        return contender.settings[0]
    runs = {s: [pool.submit(run, contender, s, seed) for seed in TUNING_SEEDS] for s in contender.settings}
    scores = {}
    for setting, futures in runs.items():
        own = [future.result()["val"]["balanced_accuracy"] for future in futures]
        scores[setting] = mean(own)
        shown = ", ".join(f"{value:.3f}" for value in own)
        print(f"{contender.data}, {contender.name}, {setting}: validation {shown}", flush=True)
    return max(scores, key=scores.__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["brain_mri", "dermoscopy_pairs"])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    arguments = parser.parse_args()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for contender in [c for data in arguments.data for c in contenders(data)]:
            setting = choose(contender, pool)
            runs = [pool.submit(run, contender, setting, seed) for seed in SEEDS]
            tests = [future.result()["test"] for future in runs]
            columns = [[test[metric] for test in tests] for metric in ("balanced_accuracy", "auroc")]
            cells = [f"{mean(column):.3f} ± {stdev(column):.3f}" for column in columns]
            print(f"| {contender.data} | {contender.name} | {setting} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
