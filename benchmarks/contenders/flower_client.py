"""The client side of the Flower contender; a module of its own, so that Ray's actors import it by name."""

from functools import cache

import numpy as np
import torch
from flwr.client import Client, ClientFnExt, NumPyClient
from flwr.common import Context
from torch import Tensor

from benchmarks import regimes
from benchmarks.peer_model import Classifier, client_tensors, train_epoch


@cache
def actor_model(regime_name: str) -> Classifier:
    """One model per actor: building it anew for every client would cost Flower most of its speed."""
    return Classifier(regimes.find(regime_name))


@cache
def actor_data(regime_name: str, client_id: int) -> tuple[Tensor, Tensor]:
    return client_tensors(regimes.find(regime_name), client_id)


class BenchmarkClient(NumPyClient):
    """Trains the factors it is sent for one epoch and returns them with its number of images."""

    def __init__(self, regime_name: str, client_id: int, precision: str) -> None:
        self.model = actor_model(regime_name)
        self.images, self.labels = actor_data(regime_name, client_id)
        self.precision = precision

    def fit(
        self, parameters: list[np.ndarray], _config: dict[str, bool | bytes | float | int | str]
    ) -> tuple[list[np.ndarray], int, dict[str, bool | bytes | float | int | str]]:
        factors = self.model.factors().values()
        with torch.no_grad():
            for factor, sent in zip(factors, parameters, strict=True):
                factor.copy_(torch.from_numpy(sent))
        train_epoch(self.model, self.images, self.labels, regimes.BATCH_SIZE, self.precision)
        assert self.model.first_step_at is not None, "every regime has images"
        trained = [factor.detach().numpy() for factor in factors]
        return trained, len(self.labels), {"first_step_at": self.model.first_step_at}


def client_function(regime_name: str, precision: str, threads: int) -> ClientFnExt:
    def client_fn(context: Context) -> Client:  # Flower checks this very signature
        torch.set_num_threads(threads)
        client_id = int(context.node_config["partition-id"])
        return BenchmarkClient(regime_name, client_id, precision).to_client()

    return client_fn
