"""Methods that treat a layer's factors A and B in their own ways: rounds of two clients, worked out in numpy.

Client k minimises ||B A - T_k||^2 / 2 + ||bias - t_k||^2 / 2 by plain gradient descent.
"""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.algorithms.base import PARAMS, Aggregate, Algorithm, Payload, ServerState, Step, Tensors
from fedsim.algorithms.lora.fed_sb import FedSB
from fedsim.algorithms.lora.feddpa import FedDPA
from fedsim.algorithms.lora.la_lora import LALoRA
from fedsim.algorithms.lora.med_duallora import MedDualLoRA
from fedsim.algorithms.lora.pf2lora import PF2LoRA
from fedsim.algorithms.lora.ravan import Ravan
from fedsim.algorithms.parts.cores import CORE
from fedsim.algorithms.parts.two_levels import OWN
from fedsim.models.specs import ParamSpec
from tests.helpers import facts_of, step_of, update_of

WIDTH, R, D, LR = 5, 3, 4, 0.1
SPECS = {
    "x.lora_a": ParamSpec((1, R, D), "lora_a"),
    "x.lora_b": ParamSpec((1, WIDTH, R), "lora_b"),
    "bias": ParamSpec((2,), "head"),
}
DRAW = np.random.default_rng(3)
GOALS, BIASES = DRAW.normal(size=(2, WIDTH, D)), DRAW.normal(size=(2, 2))
A0 = DRAW.normal(size=(R, D))


def first_state(b: np.ndarray | None = None) -> ServerState:
    """The server's before round 1: B zero, if not given."""
    b = np.zeros((WIDTH, R)) if b is None else b
    params = {"x.lora_a": A0[None], "x.lora_b": b[None], "bias": np.zeros(2)}
    return ServerState(0, {name: torch.from_numpy(value) for name, value in params.items()})


def gradients(params: dict[str, Tensor], at: Tensors) -> Tensors:
    """Of the clients' losses, at trained parameters in the place of those in ``params``."""
    leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
    every = {**params, **leaves}
    apart = (every["x.lora_b"] @ every["x.lora_a"])[:, 0] - torch.from_numpy(GOALS)
    loss = 0.5 * apart.square().sum() + 0.5 * (every["bias"] - torch.from_numpy(BIASES)).square().sum()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def round_of(
    method: Algorithm, state: ServerState, kept: list[dict[str, Tensor]], num_steps: int = 1
) -> tuple[ServerState, list[Payload]]:
    """A round of both clients with equal weights, and what they sent in each phase."""
    payloads = []
    for phase in method.phases(state.round + 1):
        start = method.begin(state, phase, kept)
        params = {name: value.expand(2, *value.shape) for name, value in state.params.items()} | dict(start.params)
        trained = [name for name, spec in SPECS.items() if spec.kind in phase.kinds]
        for number in range(num_steps):
            words = {"phase": phase, "start": state.params, "context": start.context, "lr": LR, "number": number}
            own = {name: params[name] for name in trained}
            found = method.gradient(own, partial(gradients, params), Step(**step_of(**words)))
            params |= {name: own[name] - LR * grad for name, grad in found.items() if grad is not None}
        after = {name: params[name] for name in trained}
        update = update_of((0, 1), state.params, after, phase=phase, context=start.context, kept=kept, lr=LR)
        payloads.append(method.pre_aggregate(update))
        mean = {group: {n: v.double().mean(0) for n, v in part.items()} for group, part in payloads[-1].mean.items()}
        state = method.post_aggregate(state, Aggregate((0, 1), mean))
    return replace(state, round=state.round + 1), payloads


def matrix(state: ServerState, name: str) -> np.ndarray:
    """A factor of the server's."""
    return state.params[name][0].numpy()


def biases(num_steps: int) -> np.ndarray:
    """The mean of the clients' biases after so many steps from zero, all together."""
    return BIASES.mean(0) * (1 - (1 - LR) ** num_steps)


def test_med_duallora_by_hand() -> None:
    """Two rounds of one step: the clients' second begins with the mean of the shared pair and each its own."""
    method, kept = MedDualLoRA(MedDualLoRA.Config(local_rank=1), facts_of(SPECS)), [{}, {}]
    state = first_state()
    shared = np.zeros((WIDTH, 2)), A0[:2]
    own = [(np.zeros((WIDTH, 1)), A0[2:])] * 2
    for _ in range(2):
        state, (payload,) = round_of(method, state, kept)
        pairs = []
        for client in (0, 1):
            (b, a), (d, c) = shared, own[client]
            apart = b @ a + d @ c - GOALS[client]
            pairs.append((b - LR * apart @ a.T, a - LR * b.T @ apart))
            own[client] = d - LR * apart @ c.T, c - LR * d.T @ apart
        shared = (pairs[0][0] + pairs[1][0]) / 2, (pairs[0][1] + pairs[1][1]) / 2
        assert payload.mean[PARAMS]["x.lora_a"].shape == (2, 1, 2, D)
        assert payload.mean[PARAMS]["x.lora_b"].shape == (2, 1, WIDTH, 2)
        np.testing.assert_allclose(matrix(state, "x.lora_b"), np.hstack([shared[0], np.zeros((WIDTH, 1))]), atol=1e-12)
        np.testing.assert_allclose(matrix(state, "x.lora_a"), np.vstack([shared[1], A0[2:]]), atol=1e-12)
        used = method.client_params(kept, state.params)["own"]
        for client, (d, c) in enumerate(own):
            np.testing.assert_allclose(used["x.lora_b"][client, 0], np.hstack([shared[0], d]), atol=1e-12)
            np.testing.assert_allclose(used["x.lora_a"][client, 0], np.vstack([shared[1], c]), atol=1e-12)
    np.testing.assert_allclose(state.params["bias"], biases(2), atol=1e-12)


def test_feddpa_by_hand() -> None:
    """Round 1 trains the shared pair alone; round 2 the own one beside it, frozen, and then the shared one alone."""
    weight = 0.3
    config = FedDPA.Config(local_rank=1, local_weight=weight)
    method, kept = FedDPA(config, facts_of(SPECS)), [{}, {}]
    state, (first,) = round_of(method, first_state(), kept, 2)
    b, a = federated(np.zeros((WIDTH, 2)), A0[:2], 2)
    np.testing.assert_allclose(matrix(state, "x.lora_b")[:, :2] @ matrix(state, "x.lora_a")[:2], b @ a, atol=1e-12)
    assert first.mean[PARAMS]["x.lora_a"].shape == (2, 1, 2, D)
    # Nobody has a pair of its own yet.
    used = method.client_params(kept, state.params)["own"]
    np.testing.assert_allclose((used["x.lora_b"] @ used["x.lora_a"])[0, 0], b @ a, atol=1e-7)

    state, (local, _) = round_of(method, state, kept, 2)
    assert not local.mean
    own = []
    for client in (0, 1):
        d, c = np.zeros((WIDTH, 1)), A0[2:]
        for _ in range(2):
            apart = (1 - weight) * b @ a + weight * d @ c - GOALS[client]
            d, c = d - LR * weight * apart @ c.T, c - LR * weight * d.T @ apart
        own.append((d, c))
    b, a = federated(b, a, 2)
    np.testing.assert_allclose(matrix(state, "x.lora_b"), np.hstack([b, np.zeros((WIDTH, 1))]), atol=1e-12)
    np.testing.assert_allclose(matrix(state, "x.lora_a"), np.vstack([a, A0[2:]]), atol=1e-12)
    used = method.client_params(kept, state.params)["own"]
    for client, (d, c) in enumerate(own):
        expected = (1 - weight) * b @ a + weight * d @ c
        np.testing.assert_allclose((used["x.lora_b"] @ used["x.lora_a"])[client, 0], expected, atol=1e-6)


def federated(b: np.ndarray, a: np.ndarray, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean of both clients' B and A after plain FedAvg."""
    ends = []
    for goal in GOALS:
        own_b, own_a = b, a
        for _ in range(num_steps):
            apart = own_b @ own_a - goal
            own_b, own_a = own_b - LR * apart @ own_a.T, own_a - LR * own_b.T @ apart
        ends.append((own_b, own_a))
    return (ends[0][0] + ends[1][0]) / 2, (ends[0][1] + ends[1][1]) / 2


def test_pf2lora_by_hand() -> None:
    """The gradient of f(x, y - lr grad_y f(x, y)) in closed form; B of the server's pair is not zero."""
    b, a = DRAW.normal(size=(WIDTH, 2)), A0[:2]
    d, c = DRAW.normal(size=(WIDTH, 1)), A0[2:]
    method = PF2LoRA(PF2LoRA.Config(local_rank=1), facts_of(SPECS))
    kept = [
        {f"{OWN}/x.lora_b": torch.from_numpy(d[None]), f"{OWN}/x.lora_a": torch.from_numpy(c[None])} for _ in (0, 1)
    ]
    state, _ = round_of(method, first_state(np.hstack([b, np.zeros((WIDTH, 1))])), kept)
    means = np.zeros((WIDTH, 2)), np.zeros((2, D))
    for client, goal in enumerate(GOALS):
        apart = b @ a + d @ c - goal
        next_d, next_c = d - LR * apart @ c.T, c - LR * d.T @ apart
        later = b @ a + next_d @ next_c - goal
        # Along grad_y f(x, y+), B A + D C changes by this at y, and with it the gradient of x there.
        turn = (later @ next_c.T) @ c + d @ (next_d.T @ later)
        means[0][:] += (b - LR * (later @ a.T - LR * turn @ a.T)) / 2
        means[1][:] += (a - LR * (b.T @ later - LR * b.T @ turn)) / 2
        np.testing.assert_allclose(kept[client][f"{OWN}/x.lora_b"][0], next_d, atol=1e-12)
        np.testing.assert_allclose(kept[client][f"{OWN}/x.lora_a"][0], next_c, atol=1e-12)
    np.testing.assert_allclose(matrix(state, "x.lora_b")[:, :2], means[0], atol=1e-9)
    np.testing.assert_allclose(matrix(state, "x.lora_a")[:2], means[1], atol=1e-9)
    np.testing.assert_allclose(state.params["bias"], biases(1), atol=1e-12)


def binomial(rows: np.ndarray) -> np.ndarray:
    wide = np.pad(rows, ((0, 0), (2, 2)), mode="symmetric")
    return np.stack([np.convolve(row, np.array([1, 4, 6, 4, 1]) / 16, mode="valid") for row in wide])


def torus(shape: tuple[int, ...]) -> np.ndarray:
    """The Laplacian on a torus as a matrix over all its places; where an axis has two, they are neighbours once."""
    size = math.prod(shape)
    matrix = np.zeros((size, size))
    for place, index in enumerate(np.ndindex(shape)):
        matrix[place, place] = -2 * len(shape)
        around = {np.ravel_multi_index(np.add(index, move), shape, mode="wrap") for move in moves(len(shape))}
        for other in around:
            matrix[place, other] = 1
    return matrix


def moves(num_axes: int) -> list[tuple[int, ...]]:
    return [tuple(s * (a == axis) for a in range(num_axes)) for axis in range(num_axes) for s in (1, -1)]


def on_torus(grad: np.ndarray) -> np.ndarray:
    return np.linalg.solve(np.eye(grad.size) - torus(grad.shape), grad.ravel()).reshape(grad.shape)


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("form", ["paper", "released"])
def test_la_lora_by_hand(form: str, filtered: bool) -> None:
    """Three steps: B, A, B; as released A, B, A. The bias moves in all of them."""
    method = LALoRA(LALoRA.Config.model_validate({"form": form, "filter": filtered}), facts_of(SPECS))
    first = DRAW.normal(size=(WIDTH, R))
    state, _ = round_of(method, first_state(first), [{}, {}], 3)
    ends: list[list[np.ndarray]] = [[], [], []]
    for goal, target in zip(GOALS, BIASES, strict=True):
        b, a, bias = first, A0, np.zeros(2)
        for moves_b in (True, False, True) if form == "paper" else (False, True, False):
            apart = b @ a - goal
            into_b, into_a, into_bias = apart @ a.T, b.T @ apart, bias - target
            if form == "released":
                rates = (2 * into_b, into_a, into_bias)
                smooth = [on_torus(grad) if filtered else 0 for grad in (into_b, into_a, into_bias)]
                into_b, into_a, into_bias = (rate + more for rate, more in zip(rates, smooth, strict=True))
            elif filtered:
                into_b, into_a = binomial(into_b.T).T, binomial(into_a)
            b, a = (b - LR * into_b, a) if moves_b else (b, a - LR * into_a)
            bias = bias - LR * into_bias
        for end, value in zip(ends, (b, a, bias), strict=True):
            end.append(value)
    for name, (one, other) in zip(("x.lora_b", "x.lora_a", "bias"), ends, strict=True):
        np.testing.assert_allclose(state.params[name].numpy().reshape(one.shape), (one + other) / 2, atol=1e-10)


def test_fed_sb_by_hand() -> None:
    """The first round finds the bases; in the second the cores move, and their mean is the mean of the updates."""
    method = FedSB(FedSB.Config(), facts_of(SPECS))
    state, (columns, rows) = round_of(method, first_state(), [{}, {}])
    # A step from B = 0, one from A = 0 with the orthonormal Q: Q times the mean of A is LR Q Q' mean(T).
    q = np.linalg.qr(GOALS.mean(0) @ A0.T)[0]
    update = LR * q @ q.T @ GOALS.mean(0)
    np.testing.assert_allclose(matrix(state, "x.lora_b") @ matrix(state, "x.lora_a"), update, atol=1e-10)
    left, values, right = (part[..., :R] if part.ndim == 1 else part for part in np.linalg.svd(update))
    left, right = left[:, :R], right[:R]
    basis, core = (state.extra[f"{group}/x.lora_b"][0, 0].numpy() for group in ("basis", "core"))
    np.testing.assert_allclose(core, np.diag(values), atol=1e-10)
    np.testing.assert_allclose(np.abs(basis.T @ left), np.eye(R), atol=1e-9)
    np.testing.assert_allclose(np.abs(matrix(state, "x.lora_a") @ right.T), np.eye(R), atol=1e-9)
    assert [set(payload.mean[PARAMS]) for payload in (columns, rows)] == [{"x.lora_b", "bias"}, {"x.lora_a", "bias"}]

    state, (cores,) = round_of(method, state, [{}, {}], 2)
    ends = []
    for goal in GOALS:
        own = np.diag(values)
        for _ in range(2):
            own = own - LR * left.T @ (left @ own @ right - goal) @ right.T
        ends.append(left @ own @ right)
    found = matrix(state, "x.lora_b") @ matrix(state, "x.lora_a")
    np.testing.assert_allclose(found, (ends[0] + ends[1]) / 2, atol=1e-9)
    assert {name: value.shape for name, value in cores.mean[CORE].items()} == {"x.lora_b": (2, 1, 1, R, R)}
    np.testing.assert_allclose(state.params["bias"], BIASES.mean(0) * (1 - (1 - LR) ** 4), atol=1e-12)


def test_ravan_by_hand() -> None:
    """Three heads of rank 1, two rounds of two steps: the mean of s_h C_h, and scales that begin with one again."""
    method = Ravan(Ravan.Config(heads=R), facts_of(SPECS))
    state = first_state()
    state = replace(state, extra=dict(method.init_server(state.params)))
    basis = state.extra["basis/x.lora_b"][0, :, :, 0].numpy()
    np.testing.assert_allclose(basis @ basis.T, np.eye(R), atol=1e-12)
    cores = np.zeros(R)
    for _ in range(2):
        state, (payload,) = round_of(method, state, [{}, {}], 2)
        ends = []
        for goal in GOALS:
            core, scale = cores, np.ones(R)
            for _ in range(2):
                apart = sum(s * c * np.outer(b, a) for s, c, b, a in zip(scale, core, basis, A0, strict=True)) - goal
                into = np.array([b @ apart @ a for b, a in zip(basis, A0, strict=True)])
                core, scale = core - LR * scale * into, scale - LR * core * into
            ends.append(scale * core)
        sent = payload.mean[CORE]["x.lora_b"]
        assert sent.shape == (2, 1, R, 1, 1)
        np.testing.assert_allclose(sent.reshape(2, R), np.stack(ends) - cores, atol=1e-12)
        cores = (ends[0] + ends[1]) / 2
        np.testing.assert_allclose(matrix(state, "x.lora_b"), (basis * cores[:, None]).T, atol=1e-12)
    np.testing.assert_allclose(matrix(state, "x.lora_a"), A0)
    np.testing.assert_allclose(state.params["bias"], BIASES.mean(0) * (1 - (1 - LR) ** 4), atol=1e-12)
