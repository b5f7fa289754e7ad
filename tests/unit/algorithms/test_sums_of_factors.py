"""RoLoRA, FedSA-LoRA, FedSVD, FedRot-LoRA and SFed-LoRA: rounds of two clients by hand, on a linear model.

The model is y = B A x, a client's loss half the mean squared error, plus half the squared distance of the head from a
goal of its own. The method's side goes through hooks, autograd and the exact sum; the other one is numpy.

Shapes: R rank, D input width, W output width, N examples of a client.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Algorithm, ServerState, Step, Tensors
from fedsim.algorithms.lora.fedrot_lora import FedRotLoRA, nearest_rotation
from fedsim.algorithms.lora.fedsa_lora import FedSALoRA
from fedsim.algorithms.lora.fedsvd import FedSVD, orthogonalised
from fedsim.algorithms.lora.rolora import RoLoRA
from fedsim.algorithms.lora.sfed_lora import SFedLoRA
from fedsim.comm.exact import ExactSum
from fedsim.errors import UserError
from fedsim.models.specs import ParamSpec
from fedsim.phase import flattened, regrouped
from tests.helpers import facts_of, step_of, update_of

R, D, W, N = 2, 4, 3, 5
A, B, HEAD = "x.lora_a", "x.lora_b", "head.bias"
SPECS = {
    A: ParamSpec((1, R, D), "lora_a"),
    B: ParamSpec((1, W, R), "lora_b"),
    HEAD: ParamSpec((2,), "head"),
}
RNG = np.random.default_rng(3)
START = {name: RNG.normal(size=spec.shape) for name, spec in SPECS.items()}
# What three clients have: inputs, outputs, goals of the head.
X, Y, GOALS = RNG.normal(size=(3, D, N)), RNG.normal(size=(3, W, N)), RNG.normal(size=(3, 2))
LR, WEIGHTS = 0.3, (0.25, 0.75)

Factors = tuple[Any, Any, Any]


def by_hooks(method: Algorithm, cohorts: Sequence[tuple[int, int]]) -> tuple[ServerState, list[dict[str, Tensor]]]:
    """Rounds of one step of two clients each; returns the server's state, and what the three clients keep."""
    params = {name: torch.from_numpy(value.copy()) for name, value in START.items()}
    state = ServerState(0, params, dict(method.init_server(params)))
    kept: list[dict[str, Tensor]] = [{}, {}, {}]
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    for clients in cohorts:
        own = [kept[client] for client in clients]
        for phase in method.phases(state.round + 1):
            start = method.begin(state, phase, own)
            given = {
                name: start.params.get(name, value.expand(2, *value.shape)) for name, value in state.params.items()
            }
            trained = {name: value for name, value in given.items() if SPECS[name].kind in phase.kinds}

            def grad_of(at: Tensors, given: Tensors = given, clients: tuple[int, int] = clients) -> Tensors:
                leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
                loss = losses({**given, **leaves}, clients).sum()
                return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

            step = Step(**step_of(phase=phase, trained=tuple(trained), start=state.params, context=start.context))
            grads = method.gradient(trained, grad_of, step)
            after = {name: value - LR * grads[name] for name, value in trained.items()}
            words = {"weights": weights, "phase": phase, "round": state.round + 1, "kept": own}
            payload = method.pre_aggregate(update_of(clients, state.params, after, **words))
            total = ExactSum(2)
            total.add_mean(flattened(payload.mean), weights, clients)
            mean = regrouped(payload.mean, total.read(total.flat))
            state = method.post_aggregate(state, Aggregate(clients, mean))
        state = replace(state, round=state.round + 1)
    return state, kept


def losses(params: Tensors, clients: Sequence[int]) -> Tensor:
    x, y, goals = (torch.from_numpy(value[list(clients)]) for value in (X, Y, GOALS))
    error = (params[B] @ params[A]).squeeze(1) @ x - y
    return error.square().sum((1, 2)) / (2 * N) + (params[HEAD] - goals).square().sum(1) / 2


def stepped(client: int, start: Factors, trains: str = "ab", scale: float = 1.0) -> Factors:
    """One step of gradient descent from A, B and head, for outputs scale B A x; gradients written out."""
    a, b, head = start
    error = (scale * b @ a @ X[client] - Y[client]) / N
    new_a = a - LR * scale * b.T @ error @ X[client].T if "a" in trains else a
    new_b = b - LR * scale * error @ (a @ X[client]).T if "b" in trains else b
    return new_a, new_b, head - LR * (head - GOALS[client])


def mean(ends: Sequence[Factors]) -> Factors:
    a, b, head = (sum(weight * end[i] for weight, end in zip(WEIGHTS, ends, strict=True)) for i in range(3))
    return a, b, head


def first() -> Factors:
    return START[A][0], START[B][0], START[HEAD]


def assert_server(state: ServerState, expected: Factors) -> None:
    for name, value in zip((A, B, HEAD), expected, strict=True):
        np.testing.assert_allclose(state.params[name].numpy().reshape(value.shape), value, rtol=1e-9, atol=1e-12)


def make(method: type[Algorithm], num_clients: int = 2, **words: Any) -> Algorithm:
    return method(method.Config.model_validate(words), facts_of(SPECS, num_clients=num_clients))


def test_rolora_by_hand() -> None:
    state, _ = by_hooks(make(RoLoRA), [(0, 1)] * 3)
    expected = first()
    for trains in ("b", "a", "b"):
        expected = mean([stepped(client, expected, trains) for client in (0, 1)])
    assert_server(state, expected)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_fedsa_lora_by_hand(form: str) -> None:
    """Client 2 comes in round 2, from the mean A and the initial B; client 0 rests and keeps its own."""
    method = make(FedSALoRA, form=form)
    state, kept = by_hooks(method, [(0, 1), (1, 2)])
    ends = [stepped(client, first()) for client in (0, 1)]
    a, _, head = mean(ends)
    keeps_head = form == "released"
    later = [
        stepped(1, (a, ends[1][1], ends[1][2] if keeps_head else head)),
        stepped(2, (a, START[B][0], START[HEAD] if keeps_head else head)),
    ]
    new_a, _, new_head = mean(later)
    assert_server(state, (new_a, START[B][0], START[HEAD] if keeps_head else new_head))
    own = method.client_params(kept, state.params)["own"]
    assert own.keys() == ({B, HEAD} if keeps_head else {B})
    for client, end in enumerate((ends[0], *later)):
        np.testing.assert_allclose(own[B][client, 0], end[1], rtol=1e-9)
        if keeps_head:
            np.testing.assert_allclose(own[HEAD][client], end[2], rtol=1e-9)


def test_sfed_lora_by_hand() -> None:
    """The model's own scale is lora_alpha / R = 1, so lora_alpha is 2; three clients in a round."""
    method = make(SFedLoRA, num_clients=3)
    scale = 2 * math.sqrt(3 / R)
    state, kept = by_hooks(method, [(0, 1), (0, 1)])
    ends = [stepped(client, first(), scale=scale) for client in (0, 1)]
    a, _, head = mean(ends)
    ends = [stepped(client, (a, end[1], head), scale=scale) for client, end in enumerate(ends)]
    a, _, head = mean(ends)
    assert_server(state, (a, START[B][0], head))
    # What is measured has the scale in it, since the model multiplies with its own.
    own = method.client_params(kept[:2], state.params)["own"][B]
    for client, end in enumerate(ends):
        np.testing.assert_allclose(own[client, 0], scale * end[1], rtol=1e-9)


def refactored(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A = V' and B = U S of the dense product, the largest element of each row of A positive."""
    left, values, right = np.linalg.svd(b @ a)
    signs = np.array([np.sign(row[np.abs(row).argmax()]) for row in right[:R]])
    return right[:R] * signs[:, None], left[:, :R] * values[:R] * signs


@pytest.mark.parametrize("interval", [1, 2, None])
def test_fedsvd_by_hand(interval: int | None) -> None:
    state, _ = by_hooks(make(FedSVD, interval=interval), [(0, 1)] * 2)
    expected = first()
    for round in (1, 2):
        a, b, head = mean([stepped(client, expected, "b") for client in (0, 1)])
        turns = interval is not None and round % interval == 0
        expected = (*(refactored(a, b) if turns else (a, b)), head)
    assert_server(state, expected)


def rotation(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def turned(new: Factors, old: Factors, towards: str, strength: float) -> Factors:
    """The rotation by an angle, from its tangent, in place of a singular value decomposition."""
    alike = new[0] @ old[0].T if towards == "a" else new[1].T @ old[1]
    angle = math.atan2(alike[1, 0] - alike[0, 1], alike[0, 0] + alike[1, 1])
    soft = rotation(math.atan2(strength * math.sin(angle), 1 - strength + strength * math.cos(angle)))
    return soft.T @ new[0], new[1] @ soft, new[2]


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("form", "turns"), [("paper", "aba"), ("released", "-ab")])
def test_fedrot_lora_by_hand(form: str, turns: str, strength: float) -> None:
    state, _ = by_hooks(make(FedRotLoRA, form=form, strength=strength), [(0, 1)] * 3)
    expected = first()
    for towards in turns:
        ends = [stepped(client, expected) for client in (0, 1)]
        expected = mean([end if towards == "-" else turned(end, expected, towards, strength) for end in ends])
    assert_server(state, expected)


def test_clients_with_one_update_in_other_coordinates_are_averaged_to_it() -> None:
    """Both have the server's own product, one of them turned by 2 radians: a mean of factors would lose half of it."""
    angles = (0.0, 2.0)
    after = {
        A: torch.from_numpy(np.stack([rotation(angle).T @ START[A] for angle in angles])),
        B: torch.from_numpy(np.stack([START[B] @ rotation(angle) for angle in angles])),
    }
    before = {name: torch.from_numpy(START[name]) for name in (A, B)}
    for round in (1, 2):
        found = make(FedRotLoRA, strength=1.0).pre_aggregate(update_of((0, 1), before, after, round=round))
        for change in found.mean["params"].values():
            torch.testing.assert_close(change, torch.zeros_like(change), rtol=0, atol=1e-12)


def test_the_nearest_rotation_of_a_reflection() -> None:
    stream = np.random.default_rng(0)
    matrices = torch.from_numpy(stream.normal(size=(40, 3, 3)))
    assert (torch.linalg.det(matrices) < 0).any()
    found = nearest_rotation(matrices)
    torch.testing.assert_close(found @ found.mT, torch.eye(3, dtype=torch.float64).expand(40, 3, 3))
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(40, dtype=torch.float64))
    others = nearest_rotation(torch.from_numpy(stream.normal(size=(200, 1, 3, 3))))
    best, tried = ((turn.mT @ matrices).diagonal(dim1=-2, dim2=-1).sum(-1) for turn in (found, others))
    assert (best >= tried).all()


@pytest.mark.parametrize("learned", [0, 1, 2])
def test_orthonormal_rows_whatever_the_rank_of_b(learned: int) -> None:
    """Rows that B does not use stay in the space that A had."""
    stream = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, R, D, generator=stream), torch.randn(3, W, R, generator=stream)
    b[..., learned:] = 0
    new_a, new_b = orthogonalised(a, b)
    assert (new_a.dtype, new_b.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(new_b @ new_a, b @ a)
    torch.testing.assert_close(new_a @ new_a.mT, torch.eye(R).expand(3, R, R), atol=1e-6, rtol=0)
    assert torch.linalg.matrix_rank(torch.cat([a, new_a], 1), atol=1e-5).tolist() == [R] * 3
    # The signs and the order of the columns that come in make no other rows.
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    if learned == R:
        torch.testing.assert_close(orthogonalised(turn.T @ a, b @ turn), (new_a, new_b))


def test_fedsa_lora_refuses_to_keep_a_classifier_that_does_not_train() -> None:
    specs = {name: spec for name, spec in SPECS.items() if spec.kind != "head"}
    with pytest.raises(UserError, match=r"algorithm\.form: found released"):
        FedSALoRA(FedSALoRA.Config(form="released"), facts_of(specs))
