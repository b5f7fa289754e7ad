"""Methods: a two-client FedAvg by hand, FedProx's term, and how a name becomes a method."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.algorithms import METHODS, resolve
from fedsim.algorithms.base import PARAMS, Aggregate, Algorithm, ServerState, add_exact
from fedsim.algorithms.fedprox import FedProx
from fedsim.errors import UserError
from fedsim.models.specs import ParamSpec
from fedsim.tasks.task import cross_entropy
from tests.helpers import TINY_VIT, batch_of, facts_of, make_config, make_dataset, make_simulation, play


def softmax_step(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, y: np.ndarray, lr: float) -> tuple[Any, Any]:
    """One step of gradient descent of softmax regression, its gradient written out."""
    scores = x @ weight.T + bias
    probabilities = np.exp(scores - scores.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    error = (probabilities - np.eye(len(bias))[y]) / len(y)
    return weight - lr * error.T @ x, bias - lr * error.sum(0)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_two_client_fedavg_by_hand(weighting: str) -> None:
    """A head on frozen features: two epochs, then the weighted mean of both clients' weights, twice."""
    dataset, parts = make_dataset([3, 9])
    config = make_config(
        model={**TINY_VIT, "train": "head"},
        clients={"count": 2, "per_block": 2, "weighting": weighting},
        train={"lr": 0.3, "momentum": 0.0, "batch_size": 4, "epochs": 2, "shuffle": False},
    )
    sim = make_simulation(config, dataset, parts)
    start = sim.initial_state()
    end, records = play(sim, 2)

    weight, bias = (start.params[name].double().numpy() for name in ("head.weight", "head.bias"))
    shares = [0.25, 0.75] if weighting == "samples" else [0.5, 0.5]
    for _ in range(2):
        ends = []
        for part in parts:
            x = sim.images.evaluation_batch(part)[0].double().numpy()
            y = dataset.labels.numpy()[part]
            own = weight, bias
            for _ in range(2):
                for at in range(0, len(y), 4):
                    own = softmax_step(*own, x[at : at + 4], y[at : at + 4], 0.3)
            ends.append(own)
        weight, bias = (sum(s * own[i] for s, own in zip(shares, ends, strict=True)) for i in (0, 1))
    np.testing.assert_allclose(end.params["head.weight"], weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(end.params["head.bias"], bias, rtol=1e-5, atol=1e-6)
    assert records[0].row["bytes_up"] == 2 * 4 * (3 * 32 + 3)
    assert {row["client"]: row["weight"] for row in records[0].client_rows} == dict(enumerate(shares))


def test_fedprox_term_by_hand() -> None:
    start = {"x": torch.tensor([1.0, 2.0]), "logit_scale": torch.tensor(0.5), "frozen": torch.ones(3)}
    params = {
        "x": torch.tensor([[1.0, 2.0], [4.0, 6.0]], requires_grad=True),
        "logit_scale": torch.tensor([0.5, 2.5], requires_grad=True),
        "frozen": torch.ones(3),
    }
    logits = torch.zeros(2, 1, 4)
    batch = batch_of(logits, params=params, trained=("x", "logit_scale"), start=start)
    specs = {"x": ParamSpec((2,), "head"), "logit_scale": ParamSpec((), "local"), "frozen": ParamSpec((3,), "body")}
    loss = FedProx(FedProx.Config(mu=0.1), facts_of(specs)).loss(batch)
    # ||(3, 4)||^2 + 2^2 = 29
    assert loss.tolist() == pytest.approx([math.log(4), math.log(4) + 0.05 * 29])
    (grad,) = torch.autograd.grad(loss.sum(), params["x"])
    assert grad.tolist() == [[0, 0], pytest.approx([0.3, 0.4])]


def test_loss_leaves_out_empty_places() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[5.0, 0.0], [9.0, 9.0]]])
    weights = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    labels = torch.tensor([[0, 0], [1, 1]])
    loss = cross_entropy(logits, labels, weights)
    expected = [(math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2, math.log(1 + math.exp(5))]
    assert loss.tolist() == pytest.approx(expected)


def test_add_exact_rounds_once() -> None:
    value = torch.tensor([1.0, 2.0**24])
    change = torch.tensor([2.0**-30, 1.0], dtype=torch.float64)
    assert add_exact(value, change).tolist() == [1.0, 2.0**24]
    assert add_exact(torch.tensor(3), torch.tensor(0.6, dtype=torch.float64)).item() == 4
    assert add_exact(torch.tensor(3), torch.tensor(0.6, dtype=torch.float64)).dtype == torch.int64


def test_the_server_adds_the_mean_change() -> None:
    method = Algorithm(Algorithm.Config(), facts_of({}))
    state = ServerState(4, {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor(5.0)}, {"m": torch.tensor(1.0)})
    after = method.post_aggregate(state, Aggregate((0,), {PARAMS: {"x": torch.tensor([0.5, -1.0]).double()}}))
    assert after.params["x"].tolist() == [1.5, 1.0]
    assert after.params["y"] is state.params["y"]
    assert replace(after, params=state.params) == state


def test_names() -> None:
    assert all(f"{(found := resolve(name)).__module__}:{found.__name__}" == path for name, path in METHODS.items())
    assert resolve("fedsim.algorithms.fedprox.FedProx") is FedProx
    assert all(resolve(name).summary for name in METHODS)
    wrong = ("fedavgg", "no.such.Module", "fedsim.algorithms.base.Nothing", "fedsim.algorithms.base.Phase", "math.pi")
    for name in (*wrong, ".evil.Method", "...", "evil.", "evil..Method", "os.path.no.Class", "no\0such.Method", ""):
        with pytest.raises(UserError, match=r"algorithm\.name: found '"):
            resolve(name)


@pytest.mark.parametrize(
    "line", ["from algorithms.base import Algorithm", "import algorithms", "from comm import Group"]
)
def test_the_names_of_before_are_told_the_new_ones(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write_module(tmp_path, line, monkeypatch)
    with pytest.raises(UserError, match=r"which imports (algorithms|comm); expected fedsim\.\1 in its place$"):
        resolve(f"{name}.Method")


def write_module(folder: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user, whose name no other test has; returns the path of a method in it."""
    name = f"own_{abs(hash(content))}"
    (folder / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(folder)
    return f"{name}.Method"


@pytest.mark.parametrize("code", [0, 7])
def test_a_module_that_ends_the_program_is_refused(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write_module(tmp_path, f"import sys\nsys.exit({code})\n", monkeypatch)
    with pytest.raises(UserError, match=rf"Method', whose module ends the program \(code {code}\)"):
        resolve(name)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("1 / 0", ZeroDivisionError),
        ("def", SyntaxError),
        ("import nothing_of_that_name", ModuleNotFoundError),
        ("from math import nothing", ImportError),
        ("import math\nmath.nothing", AttributeError),
    ],
)
def test_what_a_module_raises_is_its_authors_to_read(
    tmp_path: Path, content: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write_module(tmp_path, content, monkeypatch)
    with pytest.raises(kind) as caught:
        resolve(name)
    assert not isinstance(caught.value, UserError)
