"""How many clients train as one batch when the config leaves it open.

The number depends on the config and on the device, never on the number of ranks, and is written into the run
folder's config.yaml, so that a repeated run cuts the same blocks anywhere.
"""

import math

import torch

from fedsim.config.experiment import Config

# Measured on 2-core CPUs (benchmarks/LOG.md): blocks gain until one activation of a step is about 2 MB.
CPU_BYTES = 2**21
# Enough blocks for a few CPU ranks to share, when the largest clients sit in the first.
CPU_MIN_BLOCKS = 6
# A transformer layer keeps about 16 values per token and channel for the backward pass, 4 bytes each; half of
# the device's memory is left to the model, the images and the optimiser.
CUDA_BYTES_PER_ELEMENT_AND_LAYER = 64
CUDA_SHARE = 0.5


def choose_block_size(config: Config, num_elements: int, num_layers: int, device: torch.device) -> int:
    """Return ``clients.per_block``, or for ``auto`` a size that suits the device.

    ``num_elements``: of one image's activation (tokens times width, or pixels); ``num_layers``: how often the
    model holds one. Whole networks train one client at a time on a CPU, where stacked convolutions do not pay: U-Nets
    take 0.9 to 1.1 of the time in blocks (8 images of 64 x 64 a step; benchmarks/LOG.md).
    """
    if config.clients.per_block != "auto":
        return config.clients.per_block
    cohort = config.clients.num_per_round
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        needed = activation_bytes(config, num_elements, num_layers)
        return gpu_block_size(cohort, needed, memory, torch.cuda.device_count())
    element_bytes = 2 if config.model.precision == "bf16" else 4
    per_client = num_elements * config.train.batch_size * element_bytes
    fitting = 1 if config.model.train == "all" else CPU_BYTES / per_client
    return max(1, min(int(fitting), math.ceil(cohort / CPU_MIN_BLOCKS)))


def activation_bytes(config: Config, num_elements: int, num_layers: int) -> int:
    """Return what a client's step is taken to need on a GPU, beside model and images."""
    return num_elements * config.train.batch_size * num_layers * CUDA_BYTES_PER_ELEMENT_AND_LAYER


def gpu_block_size(cohort: int, client_bytes: int, memory: int, num_gpus: int) -> int:
    """Return how many clients of a cohort train as one batch on GPUs with so much memory, so many on a host."""
    return max(1, min(int(memory * CUDA_SHARE / client_bytes), math.ceil(cohort / num_gpus)))
