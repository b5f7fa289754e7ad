"""Local steps at moved weights against HarmoFL's released WPOptim (harmofl_wpoptim.npz), through our own trainer.

The MLP Linear-Tanh-Linear is an encoder, Linear-Tanh, under our classifier. One round is one step on all samples; the
optimiser's state goes on from round to round with the client. Tolerance of the vectors against float64: 2e-7.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.algorithms.base import Batch, Facts
from fedsim.algorithms.harmofl import HarmoFL
from fedsim.config.words import ModelConfig
from fedsim.models.build import stack
from fedsim.models.stacked import StackedModel
from fedsim.models.tower import Encoder
from tests.golden.clip import load, load_words, numbers, tags
from tests.helpers import make_config, make_dataset, make_simulation, play

GOLDEN, WORDS = load("harmofl_wpoptim"), load_words("harmofl_wpoptim")
CASES = tags(GOLDEN, r"(\w+)/step\d+/")
NAMES = {"0.weight": "net.1.weight", "0.bias": "net.1.bias", "2.weight": "head.weight", "2.bias": "head.bias"}
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


class Watched(HarmoFL):
    """HarmoFL without images to normalise, remembering where losses and gradients are taken, and what they are."""

    def __init__(self, config: Any, facts: Facts) -> None:
        self.config, self.facts, self.specs = config, facts, facts.specs
        self.seen: list[dict[str, Any]] = []

    def loss(self, batch: Batch) -> Tensor:
        loss_K = super().loss(batch)
        params = {name: batch.params[name] for name in batch.trained}
        grads: dict[str, Tensor] = {}
        for name, value in params.items():
            value.register_hook(lambda grad, name=name: grads.update({name: grad[0]}))
        at = {name: value.detach()[0].clone() for name, value in params.items()}
        self.seen.append({"at": at, "loss": loss_K.item(), "grads": grads})
        return loss_K


def mlp(num_features: int) -> StackedModel:
    num_hidden, num_classes = (len(GOLDEN[f"init/{name}.bias"]) for name in (0, 2))
    net = nn.Sequential(nn.Flatten(), nn.Linear(num_features, num_hidden), nn.Tanh())
    words = ModelConfig.model_validate({"name": "timm:golden", "train": "all"})
    model = stack(words, Encoder(net, num_hidden, (0.0,) * 3, (1.0,) * 3, 2), num_classes, torch.device("cpu"))
    vars(model)["prefix"] = lambda values: values
    return model


def assert_all_close(found: Mapping[str, Tensor], start: str) -> None:
    for theirs, ours in NAMES.items():
        name = f"{start}/{theirs}"
        torch.testing.assert_close(found[ours], GOLDEN[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", CASES)
def test_steps(case: str) -> None:
    words, num_steps = dict(WORDS[f"{case}/kwargs"]), len(numbers(GOLDEN, rf"{case}/step(\d+)/"))
    num_samples, num_features = GOLDEN["X"].shape
    alpha = words.pop("alpha")
    words |= {"momentum": 0.0, "optimizer": "adam"} if case.startswith("adam") else {"optimizer": "sgd"}
    words |= {"batch_size": num_samples, "shuffle": False, "keep_optimizer": True}
    config = make_config(train=words, clients={"per_block": 1}, rounds=num_steps)
    dataset, parts = make_dataset([num_samples], len(GOLDEN["init/2.bias"]))
    sim = make_simulation(config, dataset, parts, mlp(num_features))
    method = Watched(HarmoFL.Config(alpha=alpha, share_target="every"), sim.algorithm.facts)
    sim.trainer.method = method
    sim = replace(sim, algorithm=method)
    order = torch.from_numpy(parts[0])
    rows = torch.zeros(len(dataset.images), num_features).index_copy(0, order, GOLDEN["X"])
    vars(sim.images)["_inputs"] = lambda places: rows[places]
    sim.images.targets = sim.images.targets.index_copy(0, order, GOLDEN["y"])

    state = sim.initial_state()
    state.params.update({ours: GOLDEN[f"init/{theirs}"] for theirs, ours in NAMES.items()})
    for number in range(num_steps):
        state, records = play(sim, 1, state)
        start = f"{case}/step{number}"
        assert records[0].row["train_loss"] == pytest.approx(GOLDEN[f"{start}/loss"].item(), rel=1e-6)
        first, second = method.seen[2 * number :]
        assert first["loss"] == pytest.approx(GOLDEN[f"{start}/loss"].item(), rel=1e-6)
        assert second["loss"] == pytest.approx(GOLDEN[f"{start}/loss_perturbed"].item(), rel=1e-6)
        assert_all_close(first["grads"], f"{start}/grad1")
        assert_all_close({name: value - first["at"][name] for name, value in second["at"].items()}, f"{start}/delta")
        assert_all_close(second["at"], f"{start}/perturbed")
        assert_all_close(second["grads"], f"{start}/grad2")
        assert_all_close(state.params, f"{start}/after")
