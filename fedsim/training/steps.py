"""Which images the clients of a block see at each step of a local training.

Shapes: K clients in a block, S local steps, B images per step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.config.train import TrainConfig
from fedsim.schedule.cohort import num_local_steps
from fedsim.seeding import numpy_stream


@dataclass(frozen=True)
class Steps:
    """Which images a block's clients see: ``index`` int64 (K, S, B) into the data set, ``weights`` (K, S, B).

    ``active[s]`` clients have a step s and ``widths[s]`` is the largest batch among them. ``chances`` float64 (K, S):
    see ``Step.chance``.
    """

    index: Tensor
    weights: Tensor
    chances: Tensor
    active: list[int]
    widths: list[int]


def plan_steps(
    parts: Sequence[np.ndarray], clients: Sequence[int], train: TrainConfig, seed: int, round: int, phase: str
) -> Steps:
    """Shuffle each client's images into batches. ``clients`` must be sorted by falling number of steps."""
    batches = [_client_batches(parts[c], train, seed, round, phase, c) for c in clients]
    lengths = [len(own) for own in batches]
    assert lengths == sorted(lengths, reverse=True)
    num_steps, width = max(lengths, default=0), max((len(b) for own in batches for b in own), default=0)
    index = np.zeros((len(clients), num_steps, width), dtype=np.int64)
    weights = np.zeros(index.shape, dtype=np.float32)
    chances = np.zeros((len(clients), num_steps))
    for row, own in enumerate(batches):
        of_pass = np.arange(len(own)) // math.ceil(max(1, len(parts[clients[row]])) / train.batch_size)
        stream = numpy_stream(seed, f"chance/{phase}", round=round, client=clients[row])
        chances[row, : len(own)] = stream.random(len(own))[of_pass]
        for step, images in enumerate(own):
            # A place that stays empty repeats an image of the same client and has weight zero.
            index[row, step] = images[0]
            index[row, step, : len(images)] = images
            weights[row, step, : len(images)] = 1 / len(images)
    active = [sum(length > step for length in lengths) for step in range(num_steps)]
    widths = [int((weights[:, step] > 0).sum(1).max()) for step in range(num_steps)]
    index_KSB, weights_KSB, chances_KS = map(torch.from_numpy, (index, weights, chances))
    return Steps(index_KSB, weights_KSB, chances_KS, active, widths)


def _client_batches(
    images: np.ndarray, train: TrainConfig, seed: int, round: int, phase: str, client: int
) -> list[np.ndarray]:
    stream = numpy_stream(seed, f"shuffle/{phase}", round=round, client=client)
    wanted = num_local_steps(train, len(images))
    batches: list[np.ndarray] = []
    while len(batches) < wanted:
        order = stream.permutation(images) if train.shuffle else images
        batches += [order[at : at + train.batch_size] for at in range(0, len(order), train.batch_size)]
    return batches[:wanted]
