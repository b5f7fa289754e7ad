"""What all contenders of benchmarks/lora/any_encoder.py start from: networks, clients, training, and their turns.

Only numpy is needed here, so that every contender can read it.

Shapes: N images of all clients, S = SIZE their side.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE, CLASSES, BATCHES = 32, 4, 2
LINEAR = ("all-linear",)
CONVNEXT: dict[str, Any] = {
    "name": "timm:convnext_tiny",
    "options": {"depths": [1, 1, 2, 1], "dims": [16, 32, 64, 128]},
}
#: In a config's words; ``{}`` is the folder that a network of Hugging Face's lies in.
ENCODERS: dict[str, dict[str, Any]] = {
    "Swin": {
        "name": "timm:swin_tiny_patch4_window7_224",
        "options": {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        "target": LINEAR,
    },
    "ConvNeXt": {**CONVNEXT, "target": LINEAR},
    "ConvNeXt, convolutions": {**CONVNEXT, "target": ("stem.0", "downsample.1", "fc1", "fc2")},
    "HF DINOv2": {"name": "hf:{}", "target": LINEAR},
}


def make_data(num_clients: int, batch: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return noise (N, 3, S, S) with labels (N,), ``BATCHES`` batches of each client one client after another."""
    stream = np.random.default_rng(0)
    count = num_clients * batch * BATCHES
    images = stream.integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)
    return images, stream.integers(CLASSES, size=count)


class Turns:
    """A contender's side of taking turns: it waits for a line, and answers with the seconds since then.

    Of several ranks the first one talks. ``meet``: returns on all of them once they have all called it.
    """

    def __init__(self, is_first: bool, clock: str, meet: Callable[[], object]) -> None:
        self._is_first = is_first
        self._clock = time.process_time if clock == "cpu" else time.perf_counter
        self._meet = meet
        self._started = 0.0

    def wait(self) -> None:
        """Return when it is this contender's turn; its end of file is this process's end."""
        if self._is_first and not sys.stdin.readline():
            sys.exit(0)
        self._meet()
        self._started = self._clock()

    def done(self) -> None:
        """Tell how long it took."""
        if self._is_first:
            print(json.dumps(self._clock() - self._started), flush=True)


def parse() -> argparse.Namespace:
    """The words that both kinds of contenders are started with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--encoders", nargs="+", required=True)
    parser.add_argument("--processes", type=int, required=True)
    for name in ("clients", "batch", "turns", "threads", "per-block"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--clock", required=True)
    return parser.parse_args()
