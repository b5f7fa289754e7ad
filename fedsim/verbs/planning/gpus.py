"""Rates of GPUs as their makers state them. Nothing here was measured by us, and no program reaches them.

Dense products, without sparsity. Sources, NVIDIA's data sheets: T4 (2019), V100 (January 2020), A100 (May 2022), L40S
(2023), H100 (2023), H200 (November 2023), B200 (DGX B200, 2024: an eighth of its eight GPUs).
"""

from dataclasses import dataclass

GB, TERA = 10**9, 10**12


@dataclass(frozen=True)
class Gpu:
    """``memory`` in bytes; ``rates`` in operations a second by precision; ``link`` in bytes a second, one way.

    The link is the one to the other GPUs of a node, NVLink or PCIe. A precision that is missing the GPU has not.
    """

    memory: int
    rates: dict[str, float]
    link: float


GPUS = {
    "t4": Gpu(16 * GB, {"fp32": 8.1 * TERA}, 16 * GB),
    "v100": Gpu(32 * GB, {"fp32": 15.7 * TERA}, 150 * GB),
    "a100": Gpu(80 * GB, {"fp32": 19.5 * TERA, "tf32": 156 * TERA, "bf16": 312 * TERA}, 300 * GB),
    "l40s": Gpu(48 * GB, {"fp32": 91.6 * TERA, "tf32": 183 * TERA, "bf16": 362 * TERA}, 32 * GB),
    "h100": Gpu(80 * GB, {"fp32": 67 * TERA, "tf32": 494 * TERA, "bf16": 989 * TERA}, 450 * GB),
    "h200": Gpu(141 * GB, {"fp32": 67 * TERA, "tf32": 494 * TERA, "bf16": 989 * TERA}, 450 * GB),
    "b200": Gpu(180 * GB, {"fp32": 75 * TERA, "tf32": 1100 * TERA, "bf16": 2250 * TERA}, 900 * GB),
}
#: Between nodes, bytes a second one way: an adapter of 400 Gbit/s for each GPU as in a DGX H200 (its data sheet), and
#: of 25 Gbit/s for a node of CPUs, which is our assumption.
NETWORK, NETWORK_OF_CPUS = 50 * GB, 3.125 * GB
#: What starting a kernel takes at least, and what a meeting over a network does; ours, from the order of such figures.
LAUNCH_SECONDS, NETWORK_LATENCY_SECONDS = 5e-6, 3e-5
