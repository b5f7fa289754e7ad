"""Starting real runs from tests: launch.py by itself or under torchrun, on a job small enough for seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedsim.verbs.evaluate import evaluate_run

ROOT = Path(__file__).resolve().parents[2]

TINY = """
name: tiny
seed: 3
rounds: 3
algorithm: {name: deer}
model:
  name: timm:vit_tiny_patch16_224
  weights: random
  options: {patch_size: 7, embed_dim: 32, depth: 2, num_heads: 2}
  lora: {r: 2, lora_alpha: 4, target: [q, k, v]}
data: {name: digits, image_size: 14, max_train: 200}
clients: {count: 7, per_block: 2, partition: {name: dirichlet, alpha: 0.5}}
train: {lr: 0.05, momentum: 0.9, batch_size: 8}
"""

MASKED = """
name: masked
seed: 3
rounds: 2
algorithm: {name: harmofl}
model:
  name: monai:unet
  weights: random
  options: {channels: [4, 8], strides: [2], norm: batch}
  amplitude_norm: {}
data: {name: nuclei, root: %s, image_size: 16, augment: [flip, rotate90]}
clients: {count: 3, per_block: 2, partition: {name: sites}}
train: {lr: 0.05, momentum: 0.9, batch_size: 4}
evaluate: {clients: true, batch_size: 5}
"""


def write_config(folder: Path, text: str = TINY) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def write_masked_config(folder: Path) -> Path:
    """A U-Net on three sites of a dozen squares each, written beside the config."""
    stream = np.random.default_rng(0)
    for site in "abc":
        for kind in ("images", "masks"):
            (folder / "nuclei" / site / kind).mkdir(parents=True)
        for number in range(12):
            pixels = stream.integers(100, size=(16, 16), dtype=np.uint8)
            mask = np.zeros_like(pixels)
            top, left = stream.integers(10, size=2)
            mask[top : top + 6, left : left + 6] = 1
            Image.fromarray(pixels + 120 * mask).save(folder / "nuclei" / site / "images" / f"{number}.png")
            Image.fromarray(mask).save(folder / "nuclei" / site / "masks" / f"{number}.png")
    return write_config(folder, MASKED % (folder / "nuclei"))


def command(num_ranks: int, *arguments: object) -> list[str]:
    """The command line of launch.py; without torchrun for ``num_ranks`` 0."""
    words = ["launch.py", *map(str, arguments)]
    if num_ranks == 0:
        return [sys.executable, *words]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks)]
    # A free port of its own, so that tests may run beside each other.
    return [*torchrun, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *words]


def environment(**extra: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "160"} | extra


def launch(num_ranks: int, *arguments: object, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run to the end; a run that hangs fails the test."""
    return subprocess.run(
        command(num_ranks, *arguments), cwd=ROOT, env=environment(**extra), capture_output=True, text=True, timeout=240
    )


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def same_log(one: Path, other: Path) -> bool:
    """Whether two runs logged the same, byte for byte, where the log follows from the config alone."""
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("metrics.jsonl", "clients.jsonl"))


def reported(folder: Path) -> dict[str, Any]:
    """The report that ``evaluate`` left in a folder, each set with its predictions."""
    report: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    predictions = json.loads((folder / "predictions.json").read_text())
    return report | {"sets": [{**one, "predictions": predictions[one["set"]]} for one in report["sets"]]}


def measured(run: Path, which: str) -> dict[str, dict[str, float | None]]:
    """The metrics that ``evaluate`` finds for a run's saved state, by split; null where one is no number."""
    evaluate_run(run, which)
    sets = reported(run / "evaluation" / which)["sets"]
    return {one["set"]: {name: found["value"] for name, found in one["scores"][0]["metrics"].items()} for one in sets}
