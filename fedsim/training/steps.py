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
from fedsim.seeding import chance, numpy_stream


@dataclass(frozen=True)
class Steps:
    """Which images a block's clients see: ``index`` int64 (K, S, B) into the data set, ``weights`` (K, S, B).

    ``active[s]`` clients have a step s and ``widths[s]`` is the largest batch among them, 1 where all are empty.
    ``chances`` float64 (K, S): see ``Step.chance``.
    """

    index: Tensor
    weights: Tensor
    chances: Tensor
    active: list[int]
    widths: list[int]

    @property
    def num_steps(self) -> Tensor:
        """The steps of each client, int64 (K,)."""
        return (torch.tensor(self.active) > torch.arange(len(self.index))[:, None]).sum(1)


def plan_steps(
    parts: Sequence[np.ndarray],
    clients: Sequence[int],
    train: TrainConfig,
    seed: int,
    round: int,
    phase: str,
    *,
    poisson: bool = False,
) -> Steps:
    """Shuffle each client's images into batches. ``clients`` must be sorted by falling number of steps.

    ``poisson``: every image is in a batch by its own chance instead, see ``poisson_batches``; the weights are then one
    over the expected batch size.
    """
    draw = poisson_batches if poisson else _client_batches
    batches = [draw(parts[c], train, seed, round, phase, c) for c in clients]
    lengths = [len(own) for own in batches]
    assert lengths == sorted(lengths, reverse=True)
    num_steps = max(lengths, default=0)
    width = max((max(1, len(batch)) for own in batches for batch in own), default=0)
    index = np.zeros((len(clients), num_steps, width), dtype=np.int64)
    weights = np.zeros(index.shape, dtype=np.float32)
    chances = np.zeros((len(clients), num_steps))
    for row, (client, own) in enumerate(zip(clients, batches, strict=True)):
        per_pass = math.ceil(max(1, len(parts[client])) / train.batch_size)
        for start in range(0, len(own), per_pass):
            chances[row, start : start + per_pass] = chance(
                seed, f"pass/{phase}/{start // per_pass}", round=round, client=client
            )
        for step, images in enumerate(own):
            # A place that stays empty repeats an image of the same client and has weight zero.
            index[row, step] = images[0] if len(images) else parts[client][0]
            index[row, step, : len(images)] = images
            size = expected_batch(train, len(parts[client])) if poisson else len(images)
            weights[row, step, : len(images)] = 1 / size
    active = [sum(length > step for length in lengths) for step in range(num_steps)]
    widths = [max(1, int((weights[:, step] > 0).sum(1).max())) for step in range(num_steps)]
    index_KSB, weights_KSB, chances_KS = map(torch.from_numpy, (index, weights, chances))
    return Steps(index_KSB, weights_KSB, chances_KS, active, widths)


def expected_batch(train: TrainConfig, num_images: int) -> int:
    """The expected size of a Poisson sample: ``train.batch_size``, or all images of a client that has fewer."""
    return min(train.batch_size, num_images)


def poisson_batches(
    images: np.ndarray, train: TrainConfig, seed: int, round: int, phase: str, client: int
) -> list[np.ndarray]:
    """Draw a client's batches: each image is in each of them with the same chance, whatever the others do.

    This is the sampling that privacy amplification by subsampling is proved for; batches vary in size and may be empty.
    """
    stream = numpy_stream(seed, f"poisson/{phase}", round=round, client=client)
    rate = expected_batch(train, len(images)) / len(images)
    return [images[stream.random(len(images)) < rate] for _ in range(num_local_steps(train, len(images)))]


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
