"""The noise on sums of cut gradients, and the Poisson samples that it is accounted for."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

import fedsim.client
from fedsim.training.steps import plan_steps
from tests.helpers import LORA, TINY_VIT, cohort_of, furthest, make_config, play, simulate
from tests.unit.training.private_steps import STILL, batches, gradients, norm, protected


def test_blocks_change_no_bit_of_the_noise() -> None:
    """Steps whose Poisson sample is empty are nothing but noise."""
    found = []
    for clients in ([(0,), (1,), (2,)], [(0, 1), (2,)], [(0, 1, 2)]):
        sim = simulate(
            [30, 30, 30], 3, privacy=protected(0.5, 1.0), train={**STILL, "batch_size": 1, "steps": 12, "epochs": None}
        )
        drawn = batches(sim, (0, 1, 2))
        own: dict[tuple[int, int], Tensor] = {}
        for block in clients:
            for step, (_, grads) in enumerate(gradients(sim, block, sim.initial_state())):
                for row, client in enumerate(block):
                    if not len(drawn[client][step]):
                        own[client, step] = torch.cat([value[row].flatten() for value in grads.values()])
        found.append(own)
    assert len({client for client, _ in found[0]}) == 3
    assert all(one.keys() == found[0].keys() for one in found)
    assert all(torch.equal(one[place], value) for one in found for place, value in found[0].items())
    distinct = {tuple(value[:4].tolist()) for value in found[0].values()}
    assert len(distinct) == len(found[0]), "each step of each client draws its own"


def test_noise_is_what_it_is_said_to_be() -> None:
    """A normal distribution of z C over the expected batch size, whatever was drawn."""
    bound, multiplier, size = 0.3, 1.7, 4
    grads = {}
    for z in (0.0, multiplier):
        train = {**STILL, "batch_size": size, "steps": 8, "epochs": None}
        sim = simulate([10, 10], 2, privacy=protected(bound, z), train=train)
        steps = gradients(sim, (0, 1), sim.initial_state())
        grads[z] = torch.cat([value.flatten() for _, found in steps for value in found.values()])
    noise = (grads[multiplier].double() - grads[0.0].double()).numpy()
    assert len(noise) > 10_000
    scale = multiplier * bound / size
    assert noise.std() == pytest.approx(scale, rel=0.02)
    assert kstest(noise / scale, "norm").pvalue > 0.01


def test_without_noise_and_bound_it_is_plain_training_on_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"train": {"batch_size": 4, "epochs": 2}, "model": {**TINY_VIT, "lora": LORA}}
    private = simulate([12, 5, 7], 3, privacy=protected(1e6), **words)
    expected, rows = play(private, 3)
    plan = fedsim.client.plan_steps
    monkeypatch.setattr(fedsim.client, "plan_steps", lambda *args, **_: plan(*args, poisson=True))
    found, plain_rows = play(simulate([12, 5, 7], 3, **words), 3)
    assert furthest(found.params, expected.params) < (1e-6, "")
    for one, other in zip(rows, plain_rows, strict=True):
        assert one.row["train_loss"] == pytest.approx(other.row["train_loss"], rel=1e-6)


def test_an_empty_batch_still_gets_noise_and_counts_as_a_step() -> None:
    train = {"lr": 0.1, "momentum": 0.0, "batch_size": 1, "steps": 6, "epochs": None}
    sim = simulate([40], 1, privacy=protected(0.5, 1.0), train=train)
    drawn = batches(sim, (0,))[0]
    assert any(not len(places) for places in drawn)
    assert any(len(places) > 1 for places in drawn)
    update, losses = sim.trainer.train((0,), cohort_of(0), sim.initial_state(), sim.algorithm.phases(1)[0], [{}])
    assert update.num_steps.tolist() == [6]
    assert torch.isfinite(losses).all()
    for step, (_, grads) in enumerate(gradients(sim, (0,), sim.initial_state())):
        assert norm(grads) > 0, step


def test_poisson_samples_by_hand() -> None:
    """Rates as asked for, each image by itself, in any company the same."""
    parts = [np.arange(100, 140), np.arange(7), np.array([3])]
    train = make_config(train={"batch_size": 10, "epochs": None, "steps": 500}).train
    steps = plan_steps(parts, [0, 1, 2], train, 0, 1, "train", poisson=True)
    sizes = (steps.weights > 0).sum(2)
    assert sizes[0].double().mean().item() == pytest.approx(10, rel=0.03)
    assert sizes[0].double().var().item() == pytest.approx(40 * 0.25 * 0.75, rel=0.15)
    assert set(sizes[1].tolist()) == {7}, "a client with fewer images than a batch has all of them in each"
    assert set(sizes[2].tolist()) == {1}
    assert sorted(set(steps.weights.flatten().tolist())) == pytest.approx([0.0, 1 / 10, 1 / 7, 1.0])
    counts = np.bincount(steps.index[0][steps.weights[0] > 0], minlength=140)[100:]
    assert counts.min() > 500 * 0.25 * 0.7
    assert counts.max() < 500 * 0.25 * 1.3
    alone = plan_steps(parts, [1], train, 0, 1, "train", poisson=True)
    assert torch.equal(alone.index[0, :, :7], steps.index[1, :, :7])
    assert steps.num_steps.tolist() == [500] * 3
    other = plan_steps(parts, [0], train, 0, 2, "train", poisson=True)
    assert not np.array_equal(*(plan.index[0][plan.weights[0] > 0] for plan in (steps, other)))
