"""The round's numbers about LoRA factors and drift, against dense numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.algorithms import METHODS
from fedsim.algorithms.base import PARAMS, Algorithm, Payload, Tensors, Update
from fedsim.measure.diagnostics import client_drift, lora_diagnostics
from fedsim.measure.factor_sums import FactorSums, block_products, block_spans, client_factors
from fedsim.models.specs import ParamSpec
from tests.conformance.settings import OWN_MODEL, active
from tests.helpers import facts_of, play, simulate, update_of, with_method

K, G, R, D, WIDTH = 4, 3, 2, 7, 5
WEIGHTS = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
#: The phases of all methods, but for one that trains a head alone.
PHASES = {"train", "a", "b", "range", "rows", "cores", "local", "personal", "body"}
COLUMNS = (
    *("aggregation_deviation", "energy_kept", "residual_norm", "effective_rank"),
    *("subspace_angle_a", "subspace_angle_b"),
)


def factors(seed: int = 0) -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return {
        f"{layer}.{name}": torch.randn(K, *shape, generator=stream)
        for layer in ("one", "two")
        for name, shape in (("lora_a", (G, R, D)), ("lora_b", (G, WIDTH, R)))
    }


def summed(own: Tensors, before: Tensors, averaged: Tensors, weights: Tensor) -> FactorSums:
    """As a phase does it, in two blocks."""
    specs = {
        name: ParamSpec(tuple(v.shape[1:]), "lora_a" if name.endswith("a") else "lora_b") for name, v in own.items()
    }
    method = Algorithm(Algorithm.Config(), facts_of(specs))
    sums: dict[str, Tensor] = {}
    for some in (slice(0, 1), slice(1, None)):
        after = {name: value[some] for name, value in own.items()}
        update = update_of(range(len(weights[some])), before, after, weights=weights[some])
        payload = Payload(mean={PARAMS: {name: value[some] for name, value in averaged.items()}})
        found = client_factors(method, update, payload)
        ones = torch.ones_like(weights[some])
        parts = block_products(found, weights[some], ones) | block_spans(found, weights[some])
        for name, value in parts.items():
            sums[name] = sums.get(name, 0) + value[0]
    return FactorSums({layer: factors.trained for layer, factors in found.items()}, sums)


def diagnose(own: dict[str, Tensor], shared: dict[str, Tensor], weights: Tensor) -> dict[str, Any]:
    """The server starts from zeros but for what is shared, and goes on with the means."""
    before = {name: torch.zeros_like(value[0]) for name, value in own.items()} | shared
    change = {n: torch.tensordot(weights, v.double(), 1) for n, v in own.items()}
    after = {n: (v.double() + change.get(n, 0)).to(v.dtype) for n, v in before.items()}
    return lora_diagnostics(summed(own, before, own, weights), before, after, change)


def dense(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mean(B A) and mean(B) mean(A), (G, O, D)."""
    weights = WEIGHTS.numpy()
    mean = sum(w * b[k].astype(float) @ a[k].astype(float) for k, w in enumerate(weights))
    mean_a, mean_b = (np.einsum("k,kgij->gij", weights, factor) for factor in (a, b))
    return mean, mean_b @ mean_a


def test_of_the_first_ranks_where_only_these_are_averaged() -> None:
    own = factors()
    short = {n: v[..., :1, :] if n.endswith("lora_a") else v[..., :1] for n, v in own.items()}
    before = {name: torch.zeros_like(value[0]) for name, value in own.items()}
    change = {n: torch.tensordot(WEIGHTS, v.double(), 1) for n, v in short.items()}
    after = {name: value.clone() for name, value in before.items()}
    for name, value in change.items():
        place = after[name][..., :1, :] if name.endswith("lora_a") else after[name][..., :1]
        place.copy_(value)
    found = lora_diagnostics(summed(own, before, short, WEIGHTS), before, after, change)
    expected = diagnose(short, {}, WEIGHTS)
    for key in COLUMNS:
        assert found[key] == pytest.approx(expected[key], rel=1e-9, abs=1e-9)
        assert found[f"{key}_per_layer"] == pytest.approx(expected[f"{key}_per_layer"], rel=1e-9, abs=1e-9)


def test_against_dense() -> None:
    own = factors()
    found = diagnose(own, {}, WEIGHTS)
    errors, norms, ranks = [], [], []
    for layer in ("one", "two"):
        of_layer = {key: found[f"{key}_per_layer"][layer] for key in COLUMNS}
        mean, of_means = dense(own[f"{layer}.lora_a"].numpy(), own[f"{layer}.lora_b"].numpy())
        errors.append(np.linalg.norm(mean - of_means))
        norms.append(np.linalg.norm(mean))
        assert of_layer["aggregation_deviation"] == pytest.approx(errors[-1] / norms[-1], rel=1e-6)
        assert of_layer["energy_kept"] == pytest.approx(1 - (errors[-1] / norms[-1]) ** 2, rel=1e-6)
        assert of_layer["residual_norm"] == pytest.approx(errors[-1], rel=1e-6)
        for slice_ in of_means:
            values = np.linalg.svd(slice_, compute_uv=False)[:R]
            share = values / values.sum()
            ranks.append(np.exp(-(share * np.log(share)).sum()))
        assert of_layer["effective_rank"] == pytest.approx(np.mean(ranks[-G:]), rel=1e-6)
    assert found["energy_kept"] == pytest.approx(1 - np.square(errors).sum() / np.square(norms).sum(), rel=1e-6)
    assert found["residual_norm"] == pytest.approx(np.linalg.norm(errors), rel=1e-6)
    assert found["aggregation_deviation"] == pytest.approx(np.linalg.norm(errors) / np.linalg.norm(norms), rel=1e-6)
    assert found["effective_rank"] == pytest.approx(np.mean(ranks), rel=1e-6)


def test_the_deviation_of_a_wide_layer_is_estimated() -> None:
    """Over 64 random directions in place of 600 input columns."""
    stream = torch.Generator().manual_seed(0)
    a, b = torch.randn(K, G, R, 600, generator=stream), torch.randn(K, G, WIDTH, R, generator=stream)
    found = diagnose({"x.lora_a": a, "x.lora_b": b}, {}, WEIGHTS)["aggregation_deviation"]
    mean, of_means = dense(a.numpy(), b.numpy())
    assert found == pytest.approx(np.linalg.norm(mean - of_means) / np.linalg.norm(mean), rel=0.15)


def angle(spaces: list[list[np.ndarray]]) -> float:
    """By the principal angles of every pair of clients, whose spaces (W, R) stand in one list per slice."""
    shared = whole = 0.0
    for slice_ in spaces:
        bases = [np.linalg.svd(space, full_matrices=False) for space in slice_]
        bases = [left[:, values > 1e-6 * values.max()] for left, values, _ in bases]
        for k, one in enumerate(bases):
            for other, weight in ((bases[j], float(WEIGHTS[k] * WEIGHTS[j])) for j in range(K) if j != k):
                shared += weight * np.square(np.linalg.svd(one.T @ other, compute_uv=False)).sum()
                whole += weight * np.sqrt(one.shape[1] * other.shape[1])
    return float(np.degrees(np.arccos(np.sqrt(shared / whole))))


@pytest.mark.parametrize("with_zeros", [False, True])
def test_angles_against_dense(with_zeros: bool) -> None:
    """Also of clients whose last ranks are zero, as where they have ranks of their own."""
    own = factors()
    if with_zeros:
        for name, value in own.items():
            (value[:2, :, 1] if name.endswith("lora_a") else value[:2, ..., 1]).zero_()
    found = diagnose(own, {}, WEIGHTS)
    for letter in "ab":
        spaces = {}
        for layer in ("one", "two"):
            value = own[f"{layer}.lora_{letter}"].double()
            columns = (value.mT if letter == "a" else value).numpy()
            spaces[layer] = [[columns[k, g] for k in range(K)] for g in range(G)]
            assert found[f"subspace_angle_{letter}_per_layer"][layer] == pytest.approx(angle(spaces[layer]), rel=1e-5)
        assert found[f"subspace_angle_{letter}"] == pytest.approx(angle([*spaces["one"], *spaces["two"]]), rel=1e-5)


def test_angles_by_hand() -> None:
    """Lines 30 degrees apart; the same plane in other coordinates; planes with nothing in common."""
    two = torch.tensor([0.5, 0.5], dtype=torch.float64)
    turn = torch.tensor([[np.cos(np.pi / 6), np.sin(np.pi / 6)]])
    line = torch.zeros(2, 1, 1, D)
    line[0, 0, 0, 0], line[1, 0, 0, :2] = 2.0, -3 * turn
    plane = torch.eye(R, D).expand(2, 1, R, D).clone()
    mixed, apart = plane.clone(), plane.clone()
    mixed[1, 0] = torch.tensor([[1.0, 2.0], [3.0, -1.0]]) @ plane[1, 0]
    apart[1, 0] = torch.eye(2 * R, D)[R:]
    for rows, degrees in ((line, 30.0), (mixed, 0.0), (apart, 90.0)):
        other = torch.ones(2, 1, WIDTH, rows.shape[2])
        found = diagnose({"x.lora_a": rows, "x.lora_b": other}, {}, two)
        assert found["subspace_angle_a"] == pytest.approx(degrees, abs=0.05)


def test_angles_of_a_wide_layer_are_estimated() -> None:
    """Over 16 directions of 600: of the same space none at all, of two random ones nearly the true one."""
    stream = torch.Generator().manual_seed(0)
    a, b = torch.randn(K, G, 8, 600, generator=stream), torch.randn(K, G, WIDTH, 8, generator=stream)
    a[1:] = a[1:] + 2 * a[:1]
    found = diagnose({"x.lora_a": a, "x.lora_b": b}, {}, WEIGHTS)["subspace_angle_a"]
    columns = a.double().mT.numpy()
    assert found == pytest.approx(angle([[columns[k, g] for k in range(K)] for g in range(G)]), abs=2)
    a[1:] = torch.randn(K - 1, G, 8, 8, generator=stream) @ a[:1]
    assert diagnose({"x.lora_a": a, "x.lora_b": b}, {}, WEIGHTS)["subspace_angle_a"] < 0.1


def test_an_angle_wants_two_clients_that_have_learned() -> None:
    own = factors()
    alone = {name: value[:1] for name, value in own.items()}
    assert diagnose(alone, {}, torch.ones(1, dtype=torch.float64))["subspace_angle_b"] is None
    nothing = {name: value * name.endswith("lora_a") for name, value in own.items()}
    found = diagnose(nothing, {}, WEIGHTS)
    assert found["subspace_angle_b"] is None
    assert 0 < found["subspace_angle_a"] < 90


def test_what_the_server_makes_of_the_means_counts() -> None:
    """It goes on with half of them: B A is a quarter of what it was, and no longer the rounding of the means."""
    own = factors()
    before = {name: torch.zeros_like(value[0]) for name, value in own.items()}
    change = {n: torch.tensordot(WEIGHTS, v.double(), 1) for n, v in own.items()}
    after = {name: (value / 2).float() for name, value in change.items()}
    found = lora_diagnostics(summed(own, before, own, WEIGHTS), before, after, change)
    errors = []
    for layer in ("one", "two"):
        mean, of_means = dense(own[f"{layer}.lora_a"].numpy(), own[f"{layer}.lora_b"].numpy())
        errors.append(np.linalg.norm(mean - of_means / 4))
    assert found["residual_norm"] == pytest.approx(np.linalg.norm(errors), rel=1e-6)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - OWN_MODEL.keys()))
def test_every_method_has_the_same_columns(method: str) -> None:
    sections = active(method)
    _, records = play(simulate([20, 12], 2, **sections), 2)
    layers = {"blocks.0.attn.qkv", "blocks.1.attn.qkv"}
    for record in records:
        phases = {name: value for name, value in record.row["diagnostics"].items() if name in PHASES}
        assert phases
        for found in phases.values():
            for key in COLUMNS:
                assert set(found[f"{key}_per_layer"]) == layers
                assert found[key] is None or np.isfinite(found[key])
            assert found["subspace_angle_b"] is None or 0 <= found["subspace_angle_b"] <= 90


def test_angles_come_with_evaluations() -> None:
    """All else comes in every round."""
    _, records = play(simulate([20, 12], 2, rounds=3, evaluate={"every": 2}), 3)
    angles = [record.row["diagnostics"]["train"]["subspace_angle_b"] is not None for record in records]
    assert angles == [False, True, True]
    assert all(record.row["diagnostics"]["train"]["energy_kept"] > 0 for record in records)


@pytest.mark.parametrize("kept", ["lora_a", "lora_b"])
def test_a_common_factor_leaves_no_deviation(kept: str) -> None:
    own = factors()
    shared = {name: own.pop(name)[0] for name in list(own) if name.endswith(kept)}
    found = diagnose(own, shared, WEIGHTS)
    assert found["aggregation_deviation"] < 1e-12


def test_nothing_learned_yet() -> None:
    own = {name: value * name.endswith("lora_a") for name, value in factors().items()}
    found = diagnose(own, {}, WEIGHTS)
    assert found["aggregation_deviation"] == 0
    assert found["effective_rank"] == 0


def test_effective_rank_by_hand() -> None:
    """Singular values 3 and 3 are a rank of two, 3 and 0 a rank of one."""
    a = torch.eye(R, D).expand(1, 1, R, D)
    for diagonal, rank in (([3.0, 3.0], 2.0), ([3.0, 0.0], 1.0)):
        b = torch.zeros(1, 1, WIDTH, R)
        b[0, 0, :R, :R] = torch.diag(torch.tensor(diagonal))
        found = diagnose({"x.lora_a": a, "x.lora_b": b}, {}, torch.ones(1, dtype=torch.float64))
        assert found["effective_rank"] == pytest.approx(rank, abs=1e-9)


def test_drift_by_hand() -> None:
    """Deltas (3, 0) and (1, 0) with equal weights: distances 1 and 1 from the mean (2, 0)."""
    mean = {"x": torch.tensor([2.0], dtype=torch.float64), "y": torch.zeros(1, dtype=torch.float64)}
    assert client_drift((9 + 1) / 2, mean) == pytest.approx(0.5)
    assert client_drift(4.0, mean) == 0
    assert client_drift(4.0 - 1e-12, mean) == 0
    assert client_drift(0.0, {"x": torch.zeros(3)}) == 0


def test_a_large_update_has_its_norm_in_the_log() -> None:
    """The norm went into an exact sum whose range ended at 1,448 squared, and the run with it."""

    class Large(Algorithm):
        def pre_aggregate(self, update: Update) -> Payload:
            sign = torch.tensor([1.0 if client % 2 else -0.5 for client in update.clients])
            far = {
                name: 1e5 * sign.view(-1, *[1] * (value.dim() - 1)).expand_as(value).contiguous()
                for name, value in self.sent(update.delta).items()
            }
            return Payload(mean={PARAMS: far})

    sim = with_method(simulate([8, 8], 2), Large)
    record = play(sim, 1)[1][0]
    # Equal weights: the mean is 0.25 of the unit, and both clients are 0.75 of it away.
    (found,) = record.row["diagnostics"].values()
    assert found["client_drift"] == pytest.approx(3)
