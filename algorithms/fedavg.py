"""FedAvg: the weighted mean of what the clients learned."""

from fedsim.algorithms.base import Algorithm


class FedAvg(Algorithm):
    """McMahan et al., AISTATS 2017. With LoRA both factors train and are averaged one by one (also called FedIT)."""

    summary = "weighted mean of the clients' parameters (McMahan et al., 2017)"
