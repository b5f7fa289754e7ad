"""Stacked optimisers against torch.optim, one per client; learning rates over the rounds by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.config.train import TrainConfig
from fedsim.training.optim import StackedOptimizer, learning_rate
from tests.helpers import make_config

# Clients stop after so many steps; the longest first.
STEPS = (7, 4, 4, 1)
WIDTH = 11
HALF_ROOT = math.sqrt(0.5)
CASES: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1},
    "momentum": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "momentum": 0.0, "weight_decay": 0.1},
    "adam": {"optimizer": "adam", "lr": 0.01, "momentum": 0.0, "weight_decay": 0.1},
    "other betas": {"optimizer": "adamw", "lr": 0.01, "momentum": 0.0, "betas": [0.8, 0.95]},
}


def words(case: str, **more: Any) -> TrainConfig:
    return make_config(train={"momentum": 0.0, **CASES[case], **more}).train


def torch_optimizer(config: TrainConfig, own: nn.Parameter) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD([own], config.lr, config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind([own], config.lr, config.betas, weight_decay=config.weight_decay)


def gradients(seed: int) -> Tensor:
    grads = torch.randn(len(STEPS), max(STEPS), WIDTH, generator=torch.Generator().manual_seed(seed))
    # One client's gradients are small enough never to be clipped.
    grads[2] *= 1e-3
    return grads


def run_stacked(
    config: TrainConfig, start: Tensor, grads: Tensor, kept: list[dict[str, Tensor]]
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    flat = start.clone()
    optimizer = StackedOptimizer(config, flat, kept)
    for step in range(max(STEPS)):
        active = sum(length > step for length in STEPS)
        optimizer.step(flat, grads[:active, step], config.lr)
    return flat, optimizer.rows()


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_as_torch_does_for_every_client(case: str, clip_norm: float | None) -> None:
    """Two trainings, the second with the optimiser state that the first left, from other parameters."""
    config = words(case, clip_norm=clip_norm)
    starts = torch.randn(2, len(STEPS), WIDTH, generator=torch.Generator().manual_seed(9))
    kept: list[dict[str, Tensor]] = [{} for _ in STEPS]
    own = [nn.Parameter(row.clone()) for row in starts[0]]
    optimizers = [torch_optimizer(config, row) for row in own]
    for training in range(2):
        flat, kept = run_stacked(config, starts[training], gradients(training), kept)
        for client, (row, optimizer) in enumerate(zip(own, optimizers, strict=True)):
            row.data.copy_(starts[training][client])
            for step in range(STEPS[client]):
                row.grad = gradients(training)[client, step].clone()
                if clip_norm is not None:
                    nn.utils.clip_grad_norm_([row], clip_norm)
                optimizer.step()
            torch.testing.assert_close(flat[client], row.detach(), rtol=1e-6, atol=1e-6)


def test_a_client_without_state_starts_fresh_beside_one_with() -> None:
    config = words("momentum")
    grads, start = gradients(0), torch.zeros(len(STEPS), WIDTH)
    fresh, rows = run_stacked(config, start, grads, [])
    mixed, _ = run_stacked(config, start, grads, [rows[0], {}, rows[2], {}])
    assert torch.equal(mixed[1], fresh[1])
    assert torch.equal(mixed[3], fresh[3])
    assert not torch.equal(mixed[0], fresh[0])


def test_sgd_without_momentum_keeps_nothing_but_the_count() -> None:
    _, rows = run_stacked(words("sgd"), torch.zeros(len(STEPS), WIDTH), gradients(0), [])
    assert [set(row) for row in rows] == [{"num_steps"}] * len(STEPS)
    assert [row["num_steps"].item() for row in rows] == list(STEPS)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "constant"}, [2.0] * 5),
        ({"name": "linear"}, [2.0, 1.5, 1.0, 0.5, 0.0]),
        ({"name": "linear", "final": 0.5}, [2.0, 1.75, 1.5, 1.25, 1.0]),
        ({"name": "cosine"}, [2.0, 1 + HALF_ROOT, 1.0, 1 - HALF_ROOT, 0.0]),
        (
            {"name": "cosine", "final": 0.25},
            [2.0, 1.25 + 0.75 * HALF_ROOT, 1.25, 1.25 - 0.75 * HALF_ROOT, 0.5],
        ),
        ({"name": "inverse"}, [2.0, 1.0, 2 / 3, 0.5, 0.4]),
        ({"name": "step", "every": 2, "factor": 0.1}, [2.0, 2.0, 0.2, 0.2, 0.02]),
    ],
)
def test_learning_rates(schedule: dict[str, Any], expected: list[float]) -> None:
    chosen = make_config(train={"schedule": schedule}).train.schedule
    found = [learning_rate(2.0, chosen, round, 5) for round in range(1, 6)]
    assert found == pytest.approx(expected, abs=1e-15)
    assert learning_rate(2.0, chosen, 1, 1) == 2.0


@pytest.mark.parametrize("case", CASES)
def test_columns_without_gradient_stand_still_as_torch_has_it(case: str) -> None:
    """Two trainings of which each odd step moves the first columns and each even one the others."""
    config, cut = words(case), 4
    start, kept = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1)), []
    owns = [[nn.Parameter(part.clone()) for part in row.split([cut, WIDTH - cut])] for row in start]
    optimizers = [[torch_optimizer(config, own) for own in row] for row in owns]
    flat = start.clone()
    for seed in (2, 3):
        grads = torch.randn(5, 2, WIDTH, generator=torch.Generator().manual_seed(seed))
        stacked = StackedOptimizer(config, flat, kept)
        for step, grad in enumerate(grads):
            turn = step % 2
            stacked.step(flat, grad, config.lr, [slice(cut, None) if turn == 0 else slice(0, cut)])
            for row, own, rule in zip(grad, owns, optimizers, strict=True):
                own[turn].grad = row.split([cut, WIDTH - cut])[turn]
                rule[turn].step()
        kept = stacked.rows()
    expected = torch.stack([torch.cat([part.detach() for part in row]) for row in owns])
    torch.testing.assert_close(flat, expected)
