"""Run folders for the page, written by hand, with all that a run may leave."""

import json
import math
from pathlib import Path
from typing import Any

from tests.unit.results.test_comparing import write_run

#: What people call a class, a method or a folder is shown, and never becomes markup or a program.
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\"&"
CLASSES = ["no tumour", "glioma", HOSTILE]


def write_whole_run(
    folder: Path, method: str, seed: int, scores: list[float], num_clients: int = 4, **words: Any
) -> Path:
    """A run with clients, diagnostics, epsilon and an environment; the third class is called ``HOSTILE``."""
    write_run(folder, method, seed, scores, **words)
    partition = json.loads((folder / "partition.json").read_text())
    clients = [
        {"client": client, "n": 30 * (client + 1), "per_class": [10 * client, 20, 10 * (client + 1)]}
        for client in range(num_clients)
    ]
    (folder / "partition.json").write_text(json.dumps({**partition, "classes": CLASSES, "clients": clients}))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = []
    for line in lines:
        line["epsilon"] = 0.5 * math.sqrt(line["round"])
        line["diagnostics"]["train"] |= {"client_drift": 1 / line["round"], "energy_kept_per_layer": {"blocks.0": 1.0}}
        for client in range(num_clients):
            score = line["test"]["accuracy"] - 0.05 * client
            own = {"after": {"test": {"f1": None if client == 1 else score}}}
            row = {"round": line["round"], "phase": "train", "client": client, "n": 30 * (client + 1), "weight": 0.25}
            rows.append({**row, "train_loss": 1 - score, "own": own})
    for name, content in (("metrics", lines), ("clients", rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    environment = {"versions": {"torch": "2.15.0"}, "ranks": 2, "git": {"commit": "c0ffee", "dirty": False}}
    hardware = {"cpu": "a CPU", "gpus": []}
    environment |= {"hardware": hardware, "command": ["launch.py", "run", "my_folder/my.yaml"]}
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def write_whole_runs(folder: Path, seeds: int = 3, num_rounds: int = 6) -> list[Path]:
    """Three contenders, one with a hostile name, each with some seeds; the methods differ clearly."""
    found = []
    for place, method in enumerate(("fedavg", "deer", f"mine.{HOSTILE}")):
        for seed in range(seeds):
            gain = 0.5 + 0.12 * place + 0.01 * seed * (1 + place / 2)
            scores = [gain * (1 - 0.6 ** (number + 1)) for number in range(num_rounds)]
            name = f"{method if place < 2 else 'mine'}_seed{seed}"
            lr = {"train": {"lr": 0.05}}
            found.append(
                write_whole_run(folder / name, method, seed, scores, per_round=(10**6 * (1 + place), 10), **lr)
            )
    return found
