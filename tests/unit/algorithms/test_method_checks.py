"""A slip in a method's hook is one line that names method and hook, before a round has gone by."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedsim.algorithms import METHODS, resolve
from fedsim.algorithms.base import Algorithm, Phase, ServerState, Start
from fedsim.errors import UserError
from fedsim.method_checks import check_names
from tests.helpers import facts_of, play, simulate, with_method

FEW_STEPS = {"steps": 1, "epochs": None, "batch_size": 4}


def slip(hook: str, returns: Any) -> UserError:
    """What a run says of a FedAvg whose ``hook`` returns ``returns(what FedAvg's returns, the hook's arguments)``."""
    sim = simulate([8, 8, 4], 3, train=FEW_STEPS)

    class Slip(Algorithm):
        pass

    right = getattr(Algorithm, hook)
    setattr(Slip, hook, lambda self, *inputs: returns(right(self, *inputs), *inputs))
    sim = with_method(sim, Slip)
    with pytest.raises(UserError) as caught:
        play(sim, 1)
    assert caught.value.where == f"Slip.{hook}"
    return caught.value


@pytest.mark.parametrize(
    ("hook", "returns", "found"),
    [
        ("loss", lambda loss, _: loss.mean(), "a tensor () of float32"),
        ("loss", lambda loss, _: loss[:1], "a tensor (1,) of float32"),
        ("loss", lambda loss, _: loss.detach(), "a tensor without gradient"),
        ("loss", lambda loss, _: loss.tolist(), "list"),
        ("loss", lambda loss, _: loss * loss.detach().mean(), "a gradient that is off by"),
        ("loss", lambda _, batch: batch.task_loss / len(batch.logits), "a gradient that is off by"),
        ("begin", lambda *_: None, "None"),
        ("begin", lambda *_: Start({"head.bais": torch.zeros(3, 3)}), "a tensor 'head.bais'"),
        ("begin", lambda *_: Start({"head.bias": torch.zeros(3)}), "head.bias: a tensor (3,) of float32"),
        ("begin", lambda *_: Start(context={"x": {"y": torch.tensor(1.0)}}), "context: x: y: a tensor ()"),
        ("gradient", lambda *_: None, "None"),
        ("gradient", lambda found, *_: {n: v for n, v in found.items() if n != "head.bias"}, "head.bias"),
        ("gradient", lambda found, *_: {n: v.sum(0) for n, v in found.items()}, "a tensor"),
        ("gradient", lambda found, *_: {n: v.double() for n, v in found.items()}, "float64"),
        ("pre_aggregate", lambda payload, _: payload.mean, "dict"),
        (
            "pre_aggregate",
            lambda payload, _: replace(payload, total={"loss": torch.tensor(1.0)}),
            "total: loss: a tensor",
        ),
        ("pre_aggregate", lambda payload, _: replace(payload, total=payload.mean), "params in mean and total"),
        (
            "pre_aggregate",
            lambda payload, update: update.kept[0].update(x=update.weights) or payload,
            "'x' kept",
        ),
        ("post_aggregate", lambda state, *_: state.params, "dict"),
        ("post_aggregate", lambda state, *_: replace(state, params={}), "a state without"),
        (
            "post_aggregate",
            lambda state, *_: replace(state, params={n: v.double() for n, v in state.params.items()}),
            "float64",
        ),
        ("post_aggregate", lambda state, *_: replace(state, layers={"bound": torch.zeros(1)}), "other layers"),
        ("phases", lambda *_: (), "tuple"),
        ("phases", lambda *_: (Phase("a"), Phase("a")), "names ['a', 'a']"),
    ],
)
def test_a_slip_is_one_line(hook: str, returns: Any, found: str) -> None:
    error = slip(hook, returns)
    assert found in str(error)
    assert "\n" not in str(error)


def test_a_mean_that_nobody_reads_is_refused() -> None:
    error = slip("pre_aggregate", lambda payload, _: replace(payload, mean={"weights": payload.mean["params"]}))
    assert "means of 'weights', which nothing reads; expected 'params'" in str(error)


def test_a_hook_that_is_misspelt_is_refused() -> None:
    class Misspelt(Algorithm):
        def pre_agregate(self, update: Any) -> Any:
            return super().pre_aggregate(update)

        def helper(self) -> None:
            """No hook, and like none."""

    with pytest.raises(UserError, match=r"^Misspelt.pre_agregate: .* expected pre_aggregate, or another name"):
        check_names(Misspelt(Algorithm.Config(), facts_of({})))


@pytest.mark.parametrize("name", METHODS)
def test_no_method_of_ours_has_a_name_like_a_hook(name: str) -> None:
    check_names(object.__new__(resolve(name)))


@pytest.mark.parametrize("name", ["fedavg", "deer", "fedsam", "moon", "prrfl"])
def test_what_methods_do_agrees(name: str) -> None:
    """The conformance suite runs every method through the same comparison."""
    words = {"decide_on": "train"} if name == "prrfl" else {}
    sim = simulate([8, 8, 5], 3, algorithm={"name": name, **words}, train={"batch_size": 4})
    assert sim.trainer.agreement is None
    play(sim, 1)
    assert sim.trainer.agreement is not None
    assert sim.trainer.agreement < 1e-5


def test_the_comparison_changes_nothing() -> None:
    """One block of three clients compares, blocks of one have nothing to compare: the same training."""
    ends: list[ServerState] = []
    for per_block in (3, 1):
        sim = simulate([8, 8, 5], per_block, train={"batch_size": 4})
        ends.append(play(sim, 1)[0])
        assert (sim.trainer.agreement is None) == (per_block == 1)
    for name, value in ends[0].params.items():
        torch.testing.assert_close(ends[1].params[name], value, rtol=1e-5, atol=1e-7)
