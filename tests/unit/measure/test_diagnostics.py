"""The round's numbers about LoRA factors and drift, against dense numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.algorithms.base import PARAMS, Algorithm, Payload, Update
from fedsim.measure.diagnostics import block_products, client_drift, lora_diagnostics
from tests.helpers import play, simulate, update_of, with_method

K, G, R, D, WIDTH = 4, 3, 2, 7, 5
WEIGHTS = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def factors(seed: int = 0) -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return {
        f"{layer}.{name}": torch.randn(K, *shape, generator=stream)
        for layer in ("one", "two")
        for name, shape in (("lora_a", (G, R, D)), ("lora_b", (G, WIDTH, R)))
    }


def diagnose(own: dict[str, Tensor], shared: dict[str, Tensor], weights: Tensor) -> dict[str, Any]:
    """As a phase does it, in two blocks: the server starts from zeros but for what is shared."""
    before = {name: torch.zeros_like(value[0]) for name, value in own.items()} | shared
    products: dict[str, Tensor] = {}
    for some in (slice(0, 1), slice(1, None)):
        after = {name: value[some] for name, value in own.items()}
        update = update_of(range(len(weights[some])), before, after, weights=weights[some])
        for layer, product in block_products(update, after).items():
            products[layer] = products.get(layer, 0) + product[0]
    return lora_diagnostics(products, before, {n: torch.tensordot(weights, v.double(), 1) for n, v in own.items()})


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
    update = update_of(range(K), before, own, weights=WEIGHTS)
    products = {layer: product[0] for layer, product in block_products(update, short).items()}
    found = lora_diagnostics(products, before, {n: torch.tensordot(WEIGHTS, v.double(), 1) for n, v in short.items()})
    expected = diagnose(short, {}, WEIGHTS)
    for key in ("aggregation_deviation", "aggregation_deviation_per_layer", "effective_rank"):
        assert found[key] == pytest.approx(expected[key], rel=1e-12)


def test_against_dense() -> None:
    own = factors()
    found = diagnose(own, {}, WEIGHTS)
    errors, norms, ranks = [], [], []
    for layer in ("one", "two"):
        mean, of_means = dense(own[f"{layer}.lora_a"].numpy(), own[f"{layer}.lora_b"].numpy())
        errors.append(np.linalg.norm(mean - of_means))
        norms.append(np.linalg.norm(mean))
        assert found["aggregation_deviation_per_layer"][layer] == pytest.approx(errors[-1] / norms[-1], rel=1e-6)
        for slice_ in of_means:
            values = np.linalg.svd(slice_, compute_uv=False)[:R]
            share = values / values.sum()
            ranks.append(np.exp(-(share * np.log(share)).sum()))
    assert found["aggregation_deviation"] == pytest.approx(np.linalg.norm(errors) / np.linalg.norm(norms), rel=1e-6)
    assert found["effective_rank"] == pytest.approx(np.mean(ranks), rel=1e-6)


def test_the_deviation_of_a_wide_layer_is_estimated() -> None:
    """Over 64 random directions in place of 600 input columns."""
    stream = torch.Generator().manual_seed(0)
    a, b = torch.randn(K, G, R, 600, generator=stream), torch.randn(K, G, WIDTH, R, generator=stream)
    found = diagnose({"x.lora_a": a, "x.lora_b": b}, {}, WEIGHTS)["aggregation_deviation"]
    mean, of_means = dense(a.numpy(), b.numpy())
    assert found == pytest.approx(np.linalg.norm(mean - of_means) / np.linalg.norm(mean), rel=0.15)


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
