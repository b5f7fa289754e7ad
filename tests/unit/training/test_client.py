"""Local steps of ragged clients: which images, with which weight, for how long."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.algorithms.base import Algorithm, Batch, Phase, ServerState, Start, Tensors
from fedsim.algorithms.fedsam import FedSAM
from fedsim.training.flat import Layout
from fedsim.training.steps import Steps, plan_steps
from tests.helpers import LORA, TINY_VIT, cohort_of, facts_of, furthest, make_config, simulate, with_params

PARTS = [np.array([5]), np.array([], dtype=np.int64), np.arange(100, 107), np.array([9, 8, 7])]


def plan(clients: list[int], round: int = 1, phase: str = "train", **train: Any) -> Steps:
    return plan_steps(PARTS, clients, make_config(train={"batch_size": 3, **train}).train, 0, round, phase)


def seen(steps: Steps, row: int) -> list[list[int]]:
    """The images of one client, batch by batch."""
    pairs = zip(steps.index[row], steps.weights[row], strict=True)
    return [index[weights > 0].tolist() for index, weights in pairs if (weights > 0).any()]


def test_stored_order_by_hand() -> None:
    steps = plan([2, 3, 0], shuffle=False)
    assert seen(steps, 0) == [[100, 101, 102], [103, 104, 105], [106]]
    assert seen(steps, 1) == [[9, 8, 7]]
    assert seen(steps, 2) == [[5]]
    assert (steps.active, steps.widths) == ([3, 1, 1], [3, 3, 1])
    assert steps.weights[0].tolist() == pytest.approx(np.array([[1 / 3] * 3, [1 / 3] * 3, [1, 0, 0]]))
    assert steps.weights[2].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    # An empty place names an image of the same client, of one whose features are known on this rank.
    assert steps.index[0, 2].tolist() == [106] * 3
    assert steps.index[2, 0].tolist() == [5] * 3


def test_epochs_see_every_image_as_often() -> None:
    steps = plan([2, 3, 0], epochs=4)
    for row, client in enumerate((2, 3, 0)):
        batches = seen(steps, row)
        assert len(batches) == 4 * -(-len(PARTS[client]) // 3)
        images, counts = np.unique(np.concatenate(batches), return_counts=True)
        assert images.tolist() == sorted(PARTS[client].tolist())
        assert set(counts) == {4}
    assert seen(steps, 0)[0] != seen(steps, 0)[3] or seen(steps, 0)[1] != seen(steps, 0)[4]


def test_steps_count_instead_of_epochs() -> None:
    steps = plan([0, 2, 3], steps=4, epochs=None, shuffle=False)
    assert seen(steps, 0) == [[5]] * 4
    assert seen(steps, 1) == [[100, 101, 102], [103, 104, 105], [106], [100, 101, 102]]
    assert seen(steps, 2) == [[9, 8, 7]] * 4
    assert steps.active == [3] * 4


def test_a_clients_order_is_its_own() -> None:
    alone, among = plan([2]), plan([2, 3, 0])
    assert seen(alone, 0) == seen(among, 0)
    orders = [str(seen(plan([2], round, phase), 0)) for round in (1, 2) for phase in ("a", "b")]
    assert len(set(orders)) == 4


def test_nobody() -> None:
    steps = plan([])
    assert steps.index.shape == (0, 0, 0)
    assert steps.active == steps.widths == []


def test_layout_packs_and_unpacks() -> None:
    layout = Layout({"a": (2, 3), "scale": (), "b": (4,)})
    params = {"b": torch.arange(4.0), "a": torch.ones(2, 3), "scale": torch.tensor(7.0)}
    flat = layout.pack({name: value.expand(5, *value.shape) for name, value in params.items()})
    assert flat.tolist() == [[1.0] * 6 + [7.0, 0.0, 1.0, 2.0, 3.0]] * 5
    assert layout.pack({name: value[None][:0] for name, value in params.items()}).shape == (0, 11)
    views = layout.unpack(flat)
    assert {name: tuple(value.shape) for name, value in views.items()} == {"a": (5, 2, 3), "scale": (5,), "b": (5, 4)}
    assert all(torch.equal(value[3], params[name]) for name, value in views.items())


def test_convolutions_lie_with_their_inputs_last() -> None:
    layout = Layout({"bias": (2,), "weight": (2, 3, 2, 2)})
    weight = torch.arange(24.0).view(2, 3, 2, 2)
    flat = layout.pack({"bias": torch.zeros(1, 2), "weight": weight[None]})
    assert flat[0, 2:].tolist() == weight.permute(0, 2, 3, 1).flatten().tolist()
    (view,) = layout.unpack(flat)["weight"]
    assert torch.equal(view, weight)
    assert view.is_contiguous(memory_format=torch.channels_last)


def test_mean_loss_is_over_the_steps_taken() -> None:
    """With a learning rate near zero every step has the loss of the start."""
    sim = simulate([33, 2], 2, train={"lr": 1e-12, "momentum": 0.0, "batch_size": 16})
    state = sim.initial_state()
    _, losses = sim.trainer.train((0, 1), cohort_of(0, 1), state, sim.algorithm.phases(1)[0], [{}, {}])
    for client, loss in enumerate(losses.tolist()):
        batches = seen(plan_steps(sim.parts, [client], sim.config.train, sim.config.seed, 1, "train"), 0)
        means = []
        for batch in batches:
            logits = sim.model.forward(state.params, sim.images.evaluation_batch(np.array(batch)), training=False)[0]
            means.append(torch.nn.functional.cross_entropy(logits, sim.dataset.labels[batch]).item())
        assert loss == pytest.approx(np.mean(means), rel=1e-5)


class Pair(Algorithm):
    """Two models per client that take no notice of each other, the second from the negated head."""

    def phases(self, round: int) -> tuple[Phase, ...]:
        del round
        return (Phase(models=2),)

    def begin(self, state: ServerState, phase: Phase, kept: Sequence[Tensors]) -> Start:
        del phase
        head = state.params["head.weight"]
        return Start({"head.weight": torch.stack([head, -head]).expand(len(kept), 2, *head.shape)})

    def loss(self, batch: Batch) -> torch.Tensor:
        assert batch.logits.shape[1] == batch.params["head.bias"].shape[1] == 2
        one, other = (replace(batch, logits=batch.logits[:, model]).task_loss for model in (0, 1))
        return one + other


class PerturbedPair(Pair, FedSAM):
    """The same, each model at its own way up its own loss."""


SGD = {"momentum": 0.9, "clip_norm": 0.05}
ADAMW = {"optimizer": "adamw", "momentum": 0.0}


# Adam's first step divides each gradient by its own size, which with BatchNorm may be rounding.
@pytest.mark.parametrize(
    ("model", "optimizer", "method"),
    [
        ("lora", SGD, Pair),
        ("lora", ADAMW, Pair),
        ("BatchNorm", SGD, Pair),
        ("lora", SGD, PerturbedPair),
    ],
)
def test_two_models_of_a_client_are_two_trainings(
    model: str, optimizer: dict[str, Any], method: type[Algorithm]
) -> None:
    words: dict[str, Any] = {**TINY_VIT, "lora": LORA}
    if model == "BatchNorm":
        words = {"name": "timm:test_resnet", "weights": "random", "train": "all"}
    train = {"lr": 0.01, "batch_size": 16, "epochs": 2, **optimizer}
    alone_with = {"name": "fedsam" if method is PerturbedPair else "fedavg"}
    sim = simulate([40, 2, 6], 3, model=words, train=train, algorithm=alone_with)
    state = sim.initial_state()
    sim.trainer.method = method(method.Config(), facts_of(sim.model.specs))
    clients, cohort = (0, 2, 1), cohort_of(0, 2, 1)
    both, losses = sim.trainer.train(clients, cohort, state, Phase(models=2), [{}, {}, {}])
    sim.trainer.method = sim.algorithm
    total = torch.zeros(3, dtype=torch.float64)
    for row in (0, 1):
        start = with_params(state, {"head.weight": (1 - 2 * row) * state.params["head.weight"]})
        alone, own_losses = sim.trainer.train(clients, cohort, start, Phase(), [{}, {}, {}])
        total += own_losses
        found = {name: value[:, row] for name, value in both.after.items()}
        assert furthest(found, alone.after) < (2e-4 if model == "BatchNorm" else 1e-5, "")
    torch.testing.assert_close(losses, total, rtol=1e-5, atol=1e-6)
