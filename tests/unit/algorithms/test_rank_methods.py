"""Aggregation of factors of unequal ranks: one step of two clients with ranks 1 and 2, in numpy."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.algorithms.base import Aggregate, Algorithm, ServerState
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.lora.hetlora import HetLoRA
from fedsim.algorithms.lora.raflora import RaFLoRA
from fedsim.algorithms.parts.own_ranks import product_norm, tail_norm
from fedsim.comm.exact import ExactSum
from fedsim.config.mistakes import KeyedError
from fedsim.models.specs import RANK, ParamSpec
from fedsim.phase import flattened, regrouped
from tests.helpers import LORA, TINY_VIT, batch_of, facts_of, make_config, play, record_phases, simulate, update_of

A, B, HEAD = "x.lora_a", "x.lora_b", "head.bias"
SPECS = {
    A: ParamSpec((1, 2, 3), "lora_a"),
    B: ParamSpec((1, 2, 2), "lora_b"),
    HEAD: ParamSpec((2,), "head"),
    RANK: ParamSpec((), "rank"),
}
FACTS = replace(facts_of(SPECS), ranks=(1, 2))
WEIGHTS = [0.25, 0.75]
SERVER = {
    A: np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
    B: np.array([[1.0, -1.0], [0.0, 2.0]]),
    HEAD: np.array([1.0, 1.0]),
}
#: What the clients end with; the first has nothing in rank 2.
AFTER = {
    A: np.array([[[2.0, 2.0, 3.0], [0.0, 0.0, 0.0]], [[1.0, 0.0, 3.0], [8.0, 5.0, 4.0]]]),
    B: np.array([[[3.0, 0.0], [1.0, 0.0]], [[1.0, -2.0], [2.0, 2.0]]]),
    HEAD: np.array([[3.0, 1.0], [1.0, 5.0]]),
}


def params() -> dict[str, torch.Tensor]:
    server = {name: torch.tensor(value).float() for name, value in SERVER.items()}
    return {A: server[A][None], B: server[B][None], HEAD: server[HEAD], RANK: torch.tensor(2.0)}


def step(method: Algorithm, kept: list[dict[str, torch.Tensor]] | None = None) -> dict[str, np.ndarray[Any, Any]]:
    """The server's factors and head after both clients' messages."""
    after = {name: torch.tensor(value).float() for name, value in AFTER.items()}
    after |= {A: after[A][:, None], B: after[B][:, None]}
    state, weights = ServerState(0, params()), torch.tensor(WEIGHTS, dtype=torch.float64)
    update = update_of((0, 1), state.params, after, weights=weights, kept=kept or [{}, {}])
    payload = method.pre_aggregate(update)
    total = ExactSum(2)
    total.add_mean(flattened(payload.mean), weights, (0, 1))
    total.add_sum(flattened(payload.total), (0, 1))
    values = total.read(total.flat)
    mean, sums = (regrouped(part, values) for part in (payload.mean, payload.total))
    end = method.post_aggregate(state, Aggregate((0, 1), mean, sums)).params
    return {A: end[A][0].numpy(), B: end[B][0].numpy(), HEAD: end[HEAD].numpy()}


def test_fedavg_pads_with_zeros() -> None:
    end = step(FedAvg(FedAvg.Config(), FACTS))
    for name in SERVER:
        np.testing.assert_allclose(end[name], 0.25 * AFTER[name][0] + 0.75 * AFTER[name][1], rtol=1e-6)


def test_raflora_by_hand() -> None:
    """The first rank is a mean of both clients, the second the second client's."""
    end = step(RaFLoRA(RaFLoRA.Config(), FACTS))
    mean = {name: 0.25 * AFTER[name][0] + 0.75 * AFTER[name][1] for name in SERVER}
    np.testing.assert_allclose(end[A], np.stack([mean[A][0], AFTER[A][1][1]]), rtol=1e-6)
    np.testing.assert_allclose(end[B], np.stack([mean[B][:, 0], AFTER[B][1][:, 1]], 1), rtol=1e-6)
    np.testing.assert_allclose(end[HEAD], mean[HEAD], rtol=1e-6)


def test_raflora_leaves_what_nobody_has() -> None:
    method = RaFLoRA(RaFLoRA.Config(), FACTS)
    after = {name: torch.tensor(value).float()[:1] for name, value in AFTER.items()}
    after |= {A: after[A][:, None], B: after[B][:, None]}
    state = ServerState(0, params())
    payload = method.pre_aggregate(update_of((0,), state.params, after))
    mean = {group: {name: value[0].double() for name, value in part.items()} for group, part in payload.mean.items()}
    end = method.post_aggregate(state, Aggregate((0,), mean)).params
    np.testing.assert_allclose(end[A][0].numpy(), [AFTER[A][0][0], SERVER[A][1]], rtol=1e-6)
    np.testing.assert_allclose(end[B][0].numpy(), np.stack([AFTER[B][0][:, 0], SERVER[B][:, 1]], 1), rtol=1e-6)


def test_hetlora_by_hand() -> None:
    """Without pruning the factors have the weights of their products' norms, the head those of the clients."""
    end = step(HetLoRA(HetLoRA.Config(gamma=1.0), FACTS))
    norms = [np.linalg.norm(AFTER[B][client] @ AFTER[A][client]) for client in (0, 1)]
    for name in (A, B):
        expected = (norms[0] * AFTER[name][0] + norms[1] * AFTER[name][1]) / sum(norms)
        np.testing.assert_allclose(end[name], expected, rtol=1e-6)
    np.testing.assert_allclose(end[HEAD], 0.25 * AFTER[HEAD][0] + 0.75 * AFTER[HEAD][1], rtol=1e-6)


def test_hetlora_prunes_a_tail_that_training_has_made_smaller() -> None:
    """The second client's tail grows, and stays; had it been ten times as large when it was given, it would go."""
    method = HetLoRA(HetLoRA.Config(gamma=0.5), FACTS)
    kept: list[dict[str, torch.Tensor]] = [{}, {}]
    step(method, kept)
    assert [own[f"own/{RANK}"].item() for own in kept] == [1, 2]

    SERVER[B][:, 1] *= 10
    try:
        kept = [{}, {}]
        end = step(method, kept)
    finally:
        SERVER[B][:, 1] /= 10
    assert [own[f"own/{RANK}"].item() for own in kept] == [1, 1]
    # What it has given up it does not send either.
    np.testing.assert_allclose(end[A][1], 0, atol=1e-6)
    np.testing.assert_allclose(end[B][:, 1], 0, atol=1e-6)


def test_a_pruned_client_trains_fewer_ranks() -> None:
    lora = {**LORA, "r": 4, "ranks": [4, 2]}
    words = {"name": "hetlora", "gamma": 0.5, "strength": 3.0}
    sim = simulate([20, 20], 2, model={**TINY_VIT, "lora": lora}, algorithm=words, train={"lr": 0.5, "epochs": 4})
    state, _ = play(sim, 4)
    left = [int(sim.store.read(client)[f"own/{RANK}"]) for client in (0, 1)]
    assert left[0] < 4
    phases = record_phases(sim)
    play(sim, 1, state)
    for client, rank in enumerate(left):
        factors = {name: value for name, value in phases[0]["after"][client].items() if name.endswith("lora_a")}
        assert factors
        for value in factors.values():
            assert value[:, :rank].any()
            assert not value[:, rank:].any()


def test_hetlora_punishes_the_tail() -> None:
    method = HetLoRA(HetLoRA.Config(gamma=0.5, strength=0.1), FACTS)
    after = {name: torch.tensor(value).float() for name, value in AFTER.items()}
    words = {A: after[A][:, None].requires_grad_(), B: after[B][:, None].requires_grad_()}
    batch = batch_of(torch.zeros(2, 1, 3), params={**words, RANK: torch.tensor([1.0, 2.0])})
    loss = method.loss(batch)
    tail = np.linalg.norm(AFTER[B][1][:, 1]) * np.linalg.norm(AFTER[A][1][1])
    assert (loss - batch.task_loss).tolist() == pytest.approx([0, 0.1 * tail], rel=1e-5)
    loss.sum().backward()
    # A zero has no direction to be punished in.
    assert all(value.grad is not None and torch.isfinite(value.grad).all() for value in words.values())


def test_norms_against_numpy() -> None:
    stream = np.random.default_rng(0)
    a, b = stream.normal(size=(3, 2, 4, 5)), stream.normal(size=(3, 2, 6, 4))
    factors = {A: torch.tensor(a), B: torch.tensor(b)}
    np.testing.assert_allclose(product_norm(factors), np.sqrt(((b @ a) ** 2).sum((1, 2, 3))))
    expected = [
        sum(np.linalg.norm(b[k, g, :, 1 : 2 + k]) * np.linalg.norm(a[k, g, 1 : 2 + k]) for g in range(2))
        for k in range(3)
    ]
    found = tail_norm(factors, torch.tensor([1, 1, 1]), torch.tensor([2, 3, 4]))
    np.testing.assert_allclose(found, expected)


def test_a_penalty_on_ranks_that_stay_is_refused() -> None:
    train = make_config().train
    with pytest.raises(KeyedError) as caught:
        HetLoRA.Config(gamma=1.0, strength=0.1).check_training(train)
    assert caught.value.key == "algorithm.strength"
    assert HetLoRA.Config(gamma=1.0).strength == 0
    HetLoRA.Config(gamma=1.0).check_training(train)
    HetLoRA.Config().check_training(train)


def test_scaffold_takes_no_padding_for_a_gradient() -> None:
    """The control of a client of rank 1 is zero beyond it, however large the server's factors are there."""
    model = {**TINY_VIT, "lora": {**LORA, "ranks": [1, 2]}}
    sim = simulate([16, 16], 2, model=model, algorithm={"name": "scaffold"}, train={"momentum": 0.0})
    play(sim, 3)
    own = sim.store.read(0)
    factors = {name: value for name, value in own.items() if name.endswith("lora_a")}
    assert factors
    for value in factors.values():
        assert value[:, 0].any()
        assert not value[:, 1].any()
