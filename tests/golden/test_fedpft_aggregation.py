"""Aggregation against FedPFT's released code (fedpft_misc.npz, agg).

The released server keeps its clients' models in the order of a set and their weights in the order of selection, so
that its weighted modes pair models with the weights of other clients (QUIRKS, FedPFT 10). Three things are compared:
our uniform mean with the released one; our sums with the released ``weighted`` mode when given the wrong pairs; and our
``weighting: samples`` with the formula of that mode over the right pairs, from the file's models and volumes alone.
The released modes ``weighted_scale`` and ``weighted_com`` have no counterpart: their weights do not sum to one.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.algorithms.base import ServerState
from fedsim.algorithms.fedavg import FedAvg
from fedsim.config.data import ClientsConfig
from fedsim.models.specs import ParamSpec
from fedsim.schedule.cohort import client_weights
from tests.golden.aggregation import aggregate
from tests.golden.clip import load, tags
from tests.helpers import facts_of, update_of

GOLDEN = load("fedpft_misc")
NAMES = tags(GOLDEN, r"agg/current/(.+)")
CASES = tags(GOLDEN, r"agg/(case\d+)/")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def mean_of(clients: Sequence[int], weights: Tensor) -> dict[str, Tensor]:
    """What FedAvg makes of these clients' models and weights."""
    server = {name: GOLDEN[f"agg/current/{name}"] for name in NAMES}
    models = {name: GOLDEN[f"agg/client_models/{name}"][list(clients)] for name in NAMES}
    specs = {name: ParamSpec(tuple(value.shape), "body") for name, value in server.items()}
    method = FedAvg(FedAvg.Config(), facts_of(specs))
    numbers = tuple(clients)
    update = update_of(numbers, server, models, weights=weights)
    return method.post_aggregate(ServerState(0, server), aggregate(method, update)).params


def our_weights(weighting: str, clients: Sequence[int]) -> Tensor:
    volumes = GOLDEN["agg/datavol"].tolist()
    words = {"count": len(volumes), "weighting": weighting, "partition": {"name": "iid"}}
    return client_weights(ClientsConfig.model_validate(words), volumes, clients)


def has_repeats(case: str) -> bool:
    """Whether a client was drawn twice: the release then has more weights than models."""
    selected = GOLDEN[f"agg/{case}/selected_clients"].tolist()
    return len(set(selected)) < len(selected)


@pytest.mark.parametrize("case", CASES)
def test_uniform_is_as_released(case: str) -> None:
    clients = GOLDEN[f"agg/{case}/order_of_models"].tolist()
    found = mean_of(clients, our_weights("uniform", clients))
    for name in NAMES:
        torch.testing.assert_close(found[name], GOLDEN[f"agg/{case}/uniform/{name}"], **CLOSE)


@pytest.mark.parametrize("case", [case for case in CASES if not has_repeats(case)])
def test_samples_pairs_every_model_with_its_own_weight(case: str) -> None:
    selected = GOLDEN[f"agg/{case}/selected_clients"].tolist()
    order = GOLDEN[f"agg/{case}/order_of_models"].tolist()
    assert sorted(selected) == sorted(order)
    mispaired = mean_of(order, our_weights("samples", selected))
    found = mean_of(order, our_weights("samples", order))
    volume = GOLDEN["agg/datavol"].numpy()[order].astype(np.float64)
    for name in NAMES:
        released = GOLDEN[f"agg/{case}/weighted/{name}"]
        torch.testing.assert_close(mispaired[name], released, **CLOSE)
        models = GOLDEN[f"agg/client_models/{name}"].double().numpy()[order]
        corrected = torch.from_numpy(np.tensordot(volume / volume.sum(), models, 1)).float()
        torch.testing.assert_close(found[name], corrected, **CLOSE)
        assert torch.allclose(corrected, released, **CLOSE) == (selected == order)
