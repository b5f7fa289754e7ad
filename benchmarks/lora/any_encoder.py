"""LoRA on encoders that are no plain transformers: a block of clients beside one client at a time.

    OMP_NUM_THREADS=1 python -m benchmarks.lora.any_encoder [--turns 7] [--clients 12] [--clock cpu]

Swin and ConvNeXt of timm and DINOv2 of Hugging Face's, at small sizes with random weights, linear layers adapted, and
ConvNeXt's convolutions, too. Every client has two batches. All simulations of an encoder live in one process and take
turns, a round each. Printed are medians over the turns after the first, and of the ratio within a turn.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import Dinov2Config, Dinov2Model
from transformers.utils import logging

from benchmarks.contenders.ours import Silent
from benchmarks.machine import description
from fedsim.build import Parts, assemble
from fedsim.comm.group import Group, open_group
from fedsim.config.experiment import Config
from fedsim.data import ClientImages, Dataset
from fedsim.machine.arithmetic import set_arithmetic
from fedsim.machine.memory import keep_freed_memory
from fedsim.models.build import build_models
from fedsim.runfolder.records import RoundRecord
from fedsim.server import run_round

SIZE, CLASSES, BATCHES = 32, 4, 2
LINEAR = ("all-linear",)
ENCODERS: dict[str, dict[str, Any]] = {
    "Swin": {
        "name": "timm:swin_tiny_patch4_window7_224",
        "options": {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        "target": LINEAR,
    },
    "ConvNeXt": {
        "name": "timm:convnext_tiny",
        "options": {"depths": [1, 1, 2, 1], "dims": [16, 32, 64, 128]},
        "target": LINEAR,
    },
    "ConvNeXt, convolutions": {
        "name": "timm:convnext_tiny",
        "options": {"depths": [1, 1, 2, 1], "dims": [16, 32, 64, 128]},
        "target": ("stem.0", "downsample.1", "fc1", "fc2"),
    },
    "HF DINOv2": {"name": "hf:{}", "target": LINEAR},
}


def write_dinov2(folder: Path) -> None:
    """A small Dinov2Model, as the library saves it."""
    logging.disable_progress_bar()
    words = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": SIZE, "patch_size": 8}
    Dinov2Model(Dinov2Config(**words)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')


def make_data(num_clients: int, batch: int) -> tuple[Dataset, list[np.ndarray]]:
    """Noise with labels, and the clients' shares of it."""
    stream = np.random.default_rng(0)
    count = num_clients * batch * BATCHES
    images = torch.from_numpy(stream.integers(0, 256, (count + 2, 3, SIZE, SIZE), dtype=np.uint8))
    labels = torch.from_numpy(stream.integers(CLASSES, size=count + 2))
    names = tuple(f"class {number}" for number in range(CLASSES))
    train, val, test = np.split(np.arange(count + 2), [count, count + 1])
    return Dataset("noise", images, labels, names, train, val, test, None, None, ()), np.split(train, num_clients)


def rounds_of(
    encoder: str, folder: Path, per_block: int, arguments: argparse.Namespace, group: Group
) -> Callable[[], None]:
    """A simulation's next round."""
    words = dict(ENCODERS[encoder])
    lora = {"r": 4, "lora_alpha": 8, "target": words.pop("target")}
    model = {"weights": "random", **words, "name": words["name"].format(folder), "lora": lora}
    partition = {"name": "iid"}
    config = Config.model_validate(
        {
            "name": "any",
            "rounds": 1000,
            "algorithm": {"name": "fedavg"},
            "model": model,
            "data": {"name": "digits", "image_size": SIZE},
            "clients": {"count": arguments.clients, "partition": partition, "per_block": per_block},
            "train": {"lr": 0.01, "batch_size": arguments.batch},
        }
    )
    dataset, parts = make_data(arguments.clients, arguments.batch)
    server, client = build_models(config.model, SIZE, dataset.class_names, 0, group.device)
    sim = assemble(config, group, Parts(dataset, ClientImages.of(parts), server, client))
    state = sim.initial_state()

    def train() -> None:
        nonlocal state
        state = run_round(sim, state, RoundRecord(sim, state.round + 1), Silent())

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--per-block", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    with open_group() as group, tempfile.TemporaryDirectory(prefix="fedsim-") as scratch:
        torch.set_num_threads(arguments.threads)
        set_arithmetic("fp32", True, group.device)
        keep_freed_memory()
        folder = Path(scratch)
        write_dinov2(folder)
        print(description())
        for encoder in arguments.encoders:
            blocks = {"block": arguments.per_block, "one at a time": 1}
            trains = {name: rounds_of(encoder, folder, size, arguments, group) for name, size in blocks.items()}
            seconds: dict[str, list[float]] = {name: [] for name in trains}
            for turn in range(arguments.turns + 1):
                for name in sorted(trains, reverse=turn % 2 == 0):
                    started = clock()
                    trains[name]()
                    seconds[name].append(clock() - started)
            block, alone = (seconds[name][1:] for name in blocks)
            ratio = median(other / mine for mine, other in zip(block, alone, strict=True))
            rates = ", ".join(f"{name} {arguments.clients / median(seconds[name][1:]):.1f}" for name in blocks)
            print(f"{encoder:24s}clients per second: {rates}; ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
