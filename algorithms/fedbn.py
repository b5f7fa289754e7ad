"""FedBN: BatchNorm stays with the clients, all else is averaged."""

from fedsim.algorithms.parts.personal import Personal


class FedBN(Personal):
    """Li et al., FedBN: Federated learning on non-IID features via local batch normalization, ICLR 2021, algorithm 1.

    Scale, shift and running statistics of every BatchNorm layer stay local. A model without one makes it FedAvg.
    """

    summary = "BatchNorm stays local, the rest is averaged (Li et al., 2021)"
    kept_kinds = frozenset({"norm", "buffer"})
