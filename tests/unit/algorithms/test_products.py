"""The methods on sums of products: a step of two clients in numpy, which shares no code with them.

Shapes: G slices of a layer, R rank, D input width, O width of a slice.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.algorithms import resolve
from fedsim.algorithms.base import PARAMS, Aggregate, Algorithm, ServerState
from fedsim.algorithms.parts.by_products import ByProducts
from fedsim.errors import UserError
from fedsim.models.specs import ParamSpec
from fedsim.storage.checkpoint import server_tensors
from tests.helpers import BY_PRODUCTS, everything, facts_of, play, same_bits, simulate, update_of

Array = NDArray[np.float64]
G, R, D, O = 2, 2, 7, 6  # noqa: E741  # as in the shapes' legend
WEIGHTS = (0.25, 0.75)
SHIFTING = {name for name in BY_PRODUCTS if resolve(name).shifts_base}
FORMS = pytest.mark.parametrize("sums_alone", [False, True])


def specs_of(name: str, rank: int = R) -> dict[str, ParamSpec]:
    specs = {
        "x.lora_a": ParamSpec((G, rank, D), "lora_a"),
        "x.lora_b": ParamSpec((G, O, rank), "lora_b"),
        "head.bias": ParamSpec((3,), "head"),
    }
    return specs | ({"x.shift": ParamSpec((G, O, D), "shift")} if name in SHIFTING else {})


class Step:
    """A method's step from random factors, and the same numbers in numpy."""

    def __init__(self, name: str, sums_alone: bool = False, rank: int = R, seed: int = 0, **settings: Any) -> None:
        specs = specs_of(name, rank)
        stream = np.random.default_rng(seed)
        params = {n: torch.from_numpy(stream.standard_normal(s.shape).astype(np.float32)) for n, s in specs.items()}
        trained = [n for n, spec in specs.items() if spec.kind != "shift"]
        after = {n: params[n] + torch.from_numpy(stream.standard_normal((2, *specs[n].shape))).float() for n in trained}
        kind = resolve(name)
        self.method = kind(kind.Config(**settings), replace(facts_of(specs), sums_alone=sums_alone, seed=11))
        self.state = ServerState(4, params, dict(self.method.init_server(params)))
        weights = torch.tensor(WEIGHTS, dtype=torch.float64)
        before = {n: params[n] for n in trained}
        payload = self.method.pre_aggregate(update_of((0, 1), before, after, weights=weights, round=5))
        mean = {
            group: {n: torch.tensordot(weights, value.double(), 1) for n, value in part.items()}
            for group, part in payload.mean.items()
        }
        self.payload = payload
        self.aggregate = Aggregate((0, 1), mean, {}, payload.gather)
        self.end = self.method.post_aggregate(self.state, self.aggregate)
        self.before = self.numpy(params)
        self.after = self.numpy(self.end.params)
        self.clients = [self.numpy({n: value[k] for n, value in after.items()}) for k in (0, 1)]

    @staticmethod
    def numpy(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
        return {name: value.double().numpy() for name, value in tensors.items()}

    def mean(self, name: str) -> Array:
        return WEIGHTS[0] * self.clients[0][name] + WEIGHTS[1] * self.clients[1][name]

    @property
    def total(self) -> Array:
        """The dense weighted mean of B_k A_k."""
        return sum(  # type: ignore[return-value]  # sum says int, too
            w * np.einsum("gor,grd->god", own["x.lora_b"], own["x.lora_a"])
            for w, own in zip(WEIGHTS, self.clients, strict=True)
        )

    @property
    def product(self) -> Array:
        """B A of what the server goes on with."""
        return np.einsum("gor,grd->god", self.after["x.lora_b"], self.after["x.lora_a"])

    @property
    def shifted(self) -> Array:
        """What went into the frozen weights."""
        return self.after["x.shift"] - self.before["x.shift"]


def close(found: Array, expected: Array, limit: float = 1e-6) -> None:
    assert np.linalg.norm(found - expected) <= limit * np.linalg.norm(expected)


def cut(matrix: Array, rank: int) -> Array:
    """The nearest matrix of a rank."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    nearest: Array = (left[:, :rank] * values[:rank]) @ right[:rank]
    return nearest


@FORMS
@pytest.mark.parametrize("name", sorted(BY_PRODUCTS))
def test_what_is_no_factor_is_averaged(name: str, sums_alone: bool) -> None:
    step = Step(name, sums_alone)
    close(step.after["head.bias"], step.mean("head.bias"))
    assert step.end.params["x.lora_a"].dtype == torch.float32


@FORMS
def test_flora(sums_alone: bool) -> None:
    step = Step("flora", sums_alone)
    close(step.shifted, step.total)
    assert not step.after["x.lora_b"].any()
    bound = 1 / np.sqrt(D)
    assert np.abs(step.after["x.lora_a"]).max() <= bound
    assert np.abs(step.after["x.lora_a"]).max() > bound / 2


def test_flora_draws_anew_every_round_and_never_by_chance() -> None:
    step = Step("flora")
    again = step.method.post_aggregate(step.state, step.aggregate)
    later = step.method.post_aggregate(replace(step.state, round=5), step.aggregate)
    assert torch.equal(again.params["x.lora_a"], step.end.params["x.lora_a"])
    assert not torch.equal(later.params["x.lora_a"], again.params["x.lora_a"])


@FORMS
@pytest.mark.parametrize("name", ["flexlora", "hlora"])
def test_cut_to_the_rank(name: str, sums_alone: bool) -> None:
    step = Step(name, sums_alone)
    a, b = step.after["x.lora_a"], step.after["x.lora_b"]
    for place in range(G):
        close(step.product[place], cut(step.total[place], R))
        orthonormal = a[place] if name == "flexlora" else b[place].T
        np.testing.assert_allclose(orthonormal @ orthonormal.T, np.eye(R), atol=1e-6)


@FORMS
@pytest.mark.parametrize("name", ["flexlora", "hlora", "florist", "fedmomentum"])
def test_at_full_rank_nothing_is_lost(name: str, sums_alone: bool) -> None:
    step = Step(name, sums_alone, rank=O, **({"energy": 1.0} if name == "florist" else {}))
    close(step.product, step.total)


@FORMS
def test_fedmomentum(sums_alone: bool) -> None:
    step = Step("fedmomentum", sums_alone)
    close(step.product + step.shifted, step.total)
    for place in range(G):
        close(step.product[place], cut(step.total[place], R))
        root = np.sqrt(np.linalg.svd(step.total[place])[1][:R])
        np.testing.assert_allclose(np.linalg.norm(step.after["x.lora_a"][place], axis=1), root, rtol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(step.after["x.lora_b"][place], axis=0), root, rtol=1e-6)


@FORMS
def test_fedex_lora(sums_alone: bool) -> None:
    step = Step("fedex_lora", sums_alone)
    close(step.after["x.lora_a"], step.mean("x.lora_a"))
    close(step.after["x.lora_b"], step.mean("x.lora_b"))
    close(step.product + step.shifted, step.total)


@FORMS
@pytest.mark.parametrize("strength", [0.01, 5.0])
def test_lora_fair(strength: float, sums_alone: bool) -> None:
    """By least squares over the rows of A and those of a unit matrix that hold the correction small."""
    step = Step("lora_fair", sums_alone, strength=strength)
    a, b = step.mean("x.lora_a"), step.mean("x.lora_b")
    close(step.after["x.lora_a"], a)
    for place in range(G):
        rows = np.vstack([a[place].T, np.sqrt(strength) * np.eye(R)])
        goal = np.vstack([(step.total[place] - b[place] @ a[place]).T, np.zeros((R, O))])
        correction = np.linalg.lstsq(rows, goal, rcond=None)[0].T
        close(step.after["x.lora_b"][place], b[place] + correction)
    plain = np.linalg.norm(step.total - b @ a)
    assert np.linalg.norm(step.total - step.product) < plain


@FORMS
@pytest.mark.parametrize("energy", [0.3, 0.6, 0.9, 1.0])
def test_florist(energy: float, sums_alone: bool) -> None:
    step = Step("florist", sums_alone, rank=4, energy=energy)
    kept = []
    for place in range(G):
        squares = np.linalg.svd(step.total[place])[1] ** 2
        number = next(p for p in range(1, 7) if squares[:p].sum() >= energy * squares.sum() * (1 - 1e-12))
        kept.append(min(4, number))
        close(step.product[place], cut(step.total[place], kept[-1]))
        assert not step.after["x.lora_b"][place][:, kept[-1] :].any()
        assert np.linalg.matrix_rank(step.after["x.lora_a"][place]) == 4, "the other ranks can still train"
    assert energy < 1 or kept == [4, 4]


@pytest.mark.parametrize("name", sorted(BY_PRODUCTS))
def test_what_travels(name: str) -> None:
    """Factors, once; or where only sums may be read, products, and factors where their means are wanted."""
    factors, products = Step(name).payload, Step(name, sums_alone=True).payload
    assert list(factors.mean[PARAMS]) == ["head.bias"]
    assert set(factors.gather["factors"]) == {"x.lora_a", "x.lora_b"}
    assert not products.gather
    assert products.mean["products"]["x"].shape == (2, G, O, D)
    averages = resolve(name).averages_factors  # type: ignore[attr-defined]  # these methods have it
    assert ("x.lora_a" in products.mean[PARAMS]) == averages


@FORMS
@pytest.mark.parametrize("name", sorted(BY_PRODUCTS))
def test_figures(name: str, sums_alone: bool) -> None:
    step = Step(name, sums_alone)
    figures = step.method.diagnostics(step.end, step.aggregate)
    whole, residual = np.linalg.norm(step.total), np.linalg.norm(step.total - step.product)
    lost = np.linalg.norm(step.total - step.product - (step.shifted if name in SHIFTING else 0))
    assert figures["residual_norm"] == pytest.approx(residual, rel=1e-5)
    assert figures["energy_kept"] == pytest.approx(1 - (residual / whole) ** 2, rel=1e-5, abs=1e-9)
    # The factors and the shift are rounded to float32 after that.
    assert figures["aggregation_deviation"] == pytest.approx(lost / whole, rel=1e-5, abs=1e-6)
    assert (figures["aggregation_deviation"] < 1e-12) == (name in SHIFTING)
    for key in ("energy_kept", "aggregation_deviation"):
        assert figures[f"{key}_per_layer"] == {"x": figures[key]}


@pytest.mark.parametrize("name", sorted(BY_PRODUCTS))
def test_without_lora_it_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^model\.lora: found null with \w+, which adds up products"):
        resolve(name)(resolve(name).Config(), facts_of({"head.bias": ParamSpec((3,), "head")}))


def test_others_have_no_shift() -> None:
    assert not Algorithm.shifts_base
    assert {name for name in BY_PRODUCTS if issubclass(resolve(name), ByProducts)} == set(BY_PRODUCTS)
    sim = simulate([8, 8], 2, algorithm={"name": "fedavg"})
    assert not [name for name in sim.initial_state().params if name.endswith("shift")]


@pytest.mark.parametrize("name", sorted(SHIFTING))
def test_a_shift_is_told_when_it_has_changed(name: str) -> None:
    """Round 1 begins from the weights that clients have."""
    sim, plain = (simulate([8, 8], 2, algorithm={"name": other}) for other in (name, "fedavg"))
    rows, usual = ([record.row for record in play(one, 2)[1]] for one in (sim, plain))
    shifts = sum(v.nbytes for n, v in sim.initial_state().params.items() if n.endswith("shift"))
    assert rows[0]["bytes_down"] == usual[0]["bytes_down"]
    assert rows[1]["bytes_down"] == usual[1]["bytes_down"] + 2 * shifts
    # A client's weight is the one number that goes up beside the factors and the head.
    assert rows[0]["bytes_up"] == usual[0]["bytes_up"] + 2 * 4


@pytest.mark.parametrize("name", sorted(SHIFTING))
def test_a_saved_state_goes_on_with_the_same_bits(name: str) -> None:
    sims = [simulate([8, 5, 9], 2, algorithm={"name": name}) for _ in range(2)]
    first = play(sims[0], 1)[0]
    saved = server_tensors(first)
    assert any(n.endswith("shift") and bool(value.any()) for n, value in saved.items())
    back = ServerState(1, {n.removeprefix("params/"): v.clone() for n, v in saved.items() if n.startswith("params/")})
    ends = [everything(sim, play(sim, 2, state)[0]) for sim, state in zip(sims, (first, back), strict=True)]
    assert same_bits(*ends)


@pytest.mark.parametrize("name", sorted(BY_PRODUCTS))
def test_products_and_factors_train_alike(name: str) -> None:
    """With a mechanism that clips nothing and adds nothing the server reads sums alone."""
    privacy = {"mechanism": {"name": "client", "bound": 1e6}, "noise_multiplier": 0.0, "delta": 1e-5}
    ends = []
    for words in (None, privacy):
        sim = simulate([20, 8, 5], 2, algorithm={"name": name}, privacy=words)
        assert sim.algorithm.facts.sums_alone == (words is not None)
        ends.append(everything(sim, play(sim, 2)[0]))
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-4, atol=1e-6)
