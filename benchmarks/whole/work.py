"""What all contenders of benchmarks/whole/networks.py start from: networks, images, training, and their turns.

Only numpy is needed here, so that every contender can read it.

Shapes: N images of all clients, S their side.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = 8


@dataclass(frozen=True)
class Work:
    """A network in a config's words, and what its clients train on: so many batches each, in stored order."""

    name: str
    size: int
    batch: int
    clients: int
    batches: int
    masks: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def make_data(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return noise (N, 3, S, S) with labels (N,), or with masks (N, S, S), one client after another."""
        stream = np.random.default_rng(0)
        count = self.clients * self.batches * self.batch
        images = stream.integers(0, 256, (count, 3, self.size, self.size), dtype=np.uint8)
        shape = (count, self.size, self.size) if self.masks else (count,)
        return images, stream.integers(2 if self.masks else CLASSES, size=shape)


SMALL_UNET = {"channels": [8, 16, 32, 64], "strides": [2, 2, 2], "norm": "batch"}
WORKS = {
    "small U-Net": Work("monai:unet", 64, 8, clients=4, batches=20, masks=True, options=SMALL_UNET),
    "slim VGG16": Work("fedsim:vgg16_slim", 64, 16, clients=4, batches=4),
    "ResNet-18": Work("timm:resnet18", 64, 16, clients=4, batches=6),
    "DenseNet121": Work("timm:densenet121", 96, 16, clients=2, batches=4),
}


def parse() -> argparse.Namespace:
    """The words that all contenders are started with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--works", nargs="+", choices=WORKS, required=True)
    parser.add_argument("--precision", required=True)
    for name in ("processes", "threads", "turns"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--thread-pool", action="store_true", help="BlazeFL's: its threads have a client each")
    return parser.parse_args()
