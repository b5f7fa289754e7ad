"""Local steps at moved weights against HarmoFL's released WPOptim (harmofl_wpoptim.npz), through our own trainer.

The MLP Linear-Tanh-Linear is an encoder, Linear-Tanh, under our classifier. One round is one step on all samples; the
optimiser's state goes on from round to round with the client. Tolerance of the vectors against float64: 2e-7.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms.harmofl import HarmoFL
from fedsim.config import ModelConfig
from fedsim.models.stacked import StackedModel
from fedsim.models.tower import Encoder
from tests.golden.clip import FOLDER, load
from tests.helpers import make_config, make_dataset, make_simulation, play

GOLDEN = load("harmofl_wpoptim")
NUM_STEPS = 6
NAMES = {"0.weight": "net.1.weight", "0.bias": "net.1.bias", "2.weight": "head.weight", "2.bias": "head.bias"}
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


class Watched(HarmoFL):
    """HarmoFL without images to normalise, remembering what it is asked and what it answers."""

    def __init__(self, config: Any, specs: Any) -> None:
        self.config, self.specs = config, specs
        self.seen: list[dict[str, Mapping[str, Tensor]]] = []

    def ascend(self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        delta = super().ascend(params, grads)
        moved = {name: value + delta[name] for name, value in params.items()}
        self.seen.append({"grad1": grads, "delta": delta, "perturbed": moved})
        return delta


def mlp() -> StackedModel:
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh())
    words = ModelConfig.model_validate({"name": "timm:golden", "train": "all"})
    return StackedModel(words, Encoder(net, 5, (0.0,) * 3, (1.0,) * 3, 2), 3, torch.device("cpu"))


@pytest.mark.parametrize("case", ["sgd", "adam", "sgd_alpha0p5"])
def test_steps(case: str) -> None:
    with np.load(FOLDER / "harmofl_wpoptim.npz") as file:
        words = json.loads(str(file[f"{case}/kwargs"]))
    alpha = words.pop("alpha")
    words |= {"momentum": 0.0, "optimizer": "adam"} if case == "adam" else {"optimizer": "sgd"}
    words |= {"batch_size": 10, "shuffle": False, "keep_optimizer": True}
    config = make_config(train=words, clients={"per_block": 1}, rounds=NUM_STEPS)
    dataset, parts = make_dataset([10])
    sim = make_simulation(config, dataset, parts, mlp())
    method = Watched(HarmoFL.Config(alpha=alpha, share_target="every"), sim.model.specs)
    sim.algorithm = sim.trainer.algorithm = method
    order = torch.from_numpy(parts[0])
    pixels = torch.zeros(len(dataset.images), 6).index_copy(0, order, GOLDEN["X"])
    vars(sim.images)["_inputs"] = lambda places: pixels[places].view(-1, 3, 1, 2)
    sim.images.targets = sim.images.targets.index_copy(0, order, GOLDEN["y"])

    state = sim.initial_state()
    state.params.update({ours: GOLDEN[f"init/{theirs}"] for theirs, ours in NAMES.items()})
    for number in range(NUM_STEPS):
        state, records = play(sim, 1, state)
        expected = f"{case}/step{number}/"
        assert records[0].row["train_loss"] == pytest.approx(GOLDEN[expected + "loss"].item(), rel=1e-6)
        for theirs, ours in NAMES.items():
            for what, found in method.seen[number].items():
                torch.testing.assert_close(found[ours][0], GOLDEN[f"{expected}{what}/{theirs}"], **CLOSE)
            torch.testing.assert_close(state.params[ours], GOLDEN[f"{expected}after/{theirs}"], **CLOSE)
    assert len(method.seen) == NUM_STEPS
