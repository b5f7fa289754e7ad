"""How many clients train as one batch when the config leaves it open.

The number depends on the config, the data and the device, never on the number of ranks, and is written into the run
folder's config.yaml, so that a repeated run cuts the same blocks anywhere.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from fedsim.config.experiment import Config
from fedsim.schedule.cohort import num_local_steps
from fedsim.schedule.ranks import assign_blocks, loads

# Measured on 2-core CPUs (benchmarks/LOG.md): blocks gain until one activation of a step is about 2 MB, and what a step
# takes whoever is in it is the time of 64 KB.
CPU_BYTES = 2**21
CPU_BYTES_OF_A_STEP = 2**16
# Blocks for a few CPU ranks to share, as many for each as can be. More blocks than the last number share themselves.
CPU_MIN_BLOCKS = 6
CPU_RANKS = (1, 2, 3)
CPU_MANY_BLOCKS = 64
# A transformer layer keeps about 16 values per token and channel for the backward pass, 4 bytes each; half of
# the device's memory is left to the model, the images and the optimiser.
CUDA_BYTES_PER_ELEMENT_AND_LAYER = 64
CUDA_SHARE = 0.5


def choose_block_size(
    config: Config, sizes: Sequence[int], num_elements: int, num_layers: int, device: torch.device
) -> int:
    """Return ``clients.per_block``, or for ``auto`` a size that suits the device.

    ``sizes``: every client's training images; ``num_elements``: of one image's activation (tokens times width, or
    pixels); ``num_layers``: how often the model holds one. Whole networks train one client at a time on a CPU, where
    stacked convolutions do not pay: U-Nets take 0.9 to 1.1 of the time in blocks (8 images of 64 x 64 a step;
    benchmarks/LOG.md).
    """
    if config.clients.per_block != "auto":
        return config.clients.per_block
    cohort = min(config.clients.num_per_round, int(np.count_nonzero(sizes)))
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        needed = activation_bytes(config, num_elements, num_layers)
        return gpu_block_size(cohort, needed, memory, torch.cuda.device_count())
    element_bytes = 2 if config.model.precision == "bf16" else 4
    per_client = num_elements * config.train.batch_size * element_bytes
    fitting = 1 if config.model.train == "all" else CPU_BYTES / per_client
    most = max(1, min(int(fitting), math.ceil(cohort / CPU_MIN_BLOCKS)))
    if cohort > CPU_MANY_BLOCKS * most:
        return most
    steps = np.sort([num_local_steps(config.train, size) for size in sizes if size])[::-1]
    typical = steps[np.linspace(0, len(steps) - 1, cohort).astype(int)].tolist()
    return most_even(typical, most, CPU_BYTES_OF_A_STEP / per_client)


def most_even(steps: Sequence[int], most: int, besides: float) -> int:
    """Return the block size, from above half of ``most`` to it, with which one to three ranks are done soonest.

    ``steps``: of every client, longest first; ``besides``: what a step takes whoever is in it, in steps of a client.
    """

    def makespans(per_block: int) -> float:
        starts = range(0, len(steps), per_block)
        costs = [sum(steps[at : at + per_block]) + besides * steps[at] for at in starts]
        idle = [[0.0] * ranks for ranks in CPU_RANKS]
        return sum(len(busy) * max(loads(costs, busy, assign_blocks(costs, busy))) for busy in idle)

    return min(range(most, most // 2, -1), key=makespans)


def activation_bytes(config: Config, num_elements: int, num_layers: int) -> int:
    """Return what a client's step is taken to need on a GPU, beside model and images."""
    return num_elements * config.train.batch_size * num_layers * CUDA_BYTES_PER_ELEMENT_AND_LAYER


def gpu_block_size(cohort: int, client_bytes: int, memory: int, num_gpus: int) -> int:
    """Return how many clients of a cohort train as one batch on GPUs with so much memory, so many on a host."""
    return max(1, min(int(memory * CUDA_SHARE / client_bytes), math.ceil(cohort / num_gpus)))
