"""DP-DyLoRA: what a drawn rank leaves of the factors, and that validation chooses what is measured and exported."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.algorithms.base import Step, Tensors
from fedsim.algorithms.lora.dp_dylora import DPDyLoRA
from fedsim.errors import UserError
from fedsim.measure.global_model import global_model
from fedsim.measure.scores import evaluate, measure_split
from fedsim.models.specs import ParamSpec
from fedsim.simulation import Simulation
from tests.helpers import LORA, TINY_VIT, facts_of, furthest, play, same_bits, simulate, step_of

SPECS = {
    "x.lora_a": ParamSpec((1, 3, 4), "lora_a"),
    "x.lora_b": ParamSpec((1, 5, 3), "lora_b"),
    "head.bias": ParamSpec((2,), "head"),
}
DYLORA = {"algorithm": {"name": "dp_dylora"}, "model": {**TINY_VIT, "lora": {**LORA, "r": 4}}}


def method(**words: Any) -> DPDyLoRA:
    return DPDyLoRA(DPDyLoRA.Config.model_validate(words), facts_of(SPECS))


def update_of_layer(params: Tensors) -> Tensor:
    """B A, (K, 1, 5, 4)."""
    return params["x.lora_b"] @ params["x.lora_a"]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_gradient_is_that_of_the_drawn_rank_alone(frozen: bool) -> None:
    """Beside autograd's of the truncated product, with lora_alpha / b in place of lora_alpha / R."""
    generator = torch.Generator().manual_seed(0)
    params = {name: torch.randn(2, *spec.shape, generator=generator) for name, spec in SPECS.items()}
    goal = torch.randn(2, 1, 5, 4, generator=generator)
    ranks = (1, 3)
    step = Step(**step_of(chance=torch.tensor([0.2, 0.9], dtype=torch.float64)))

    def grad_of(at: Tensors) -> Tensors:
        leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
        loss = (update_of_layer(leaves) * goal).sum() + leaves["head.bias"].square().sum()
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    found = method(frozen=frozen).gradient(params, grad_of, step)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    loss = leaves["head.bias"].square().sum()
    for client, rank in enumerate(ranks):
        b, a = leaves["x.lora_b"][client, 0, :, :rank], leaves["x.lora_a"][client, 0, :rank]
        loss = loss + (3 / rank * b @ a * goal[client, 0]).sum()
    loss.backward()
    for name, value in leaves.items():
        assert value.grad is not None
        expected = value.grad
        if frozen and name != "head.bias":
            last = torch.zeros(2, 3)
            last[0, ranks[0] - 1] = last[1, ranks[1] - 1] = 1
            expected = expected * (last[:, None, :, None] if name.endswith("a") else last[:, None, None, :])
        torch.testing.assert_close(found[name], expected)


@pytest.mark.parametrize(("num_ranks", "ranks"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_ranks_to_choose_from(num_ranks: int, ranks: list[int]) -> None:
    specs = {"x.lora_a": ParamSpec((1, num_ranks, 4), "lora_a"), "x.lora_b": ParamSpec((1, 5, num_ranks), "lora_b")}
    params = {name: torch.ones(spec.shape) for name, spec in specs.items()}
    models = DPDyLoRA(DPDyLoRA.Config(), facts_of(specs)).choices(params)
    assert list(models) == ranks
    for rank, model in models.items():
        # The sum over b ranks of ones, each R / b times.
        torch.testing.assert_close(update_of_layer(model), torch.full((1, 5, 4), float(num_ranks)))
        assert model["x.lora_b"].count_nonzero() == 5 * rank
    assert same_bits(models[num_ranks], params)


@pytest.mark.parametrize(
    ("model", "words", "where"),
    [
        ({**TINY_VIT, "lora": None, "train": "head"}, {}, "model.lora"),
        ({**TINY_VIT, "lora": {**LORA, "r": 3}}, {"form": "released"}, "model.lora.r"),
    ],
)
def test_a_model_without_such_ranks_is_refused(model: Any, words: Any, where: str) -> None:
    with pytest.raises(UserError) as caught:
        simulate([8], 1, model=model, algorithm={"name": "dp_dylora", **words})
    assert caught.value.where == where


def scores_of_ranks(sim: Simulation, params: Tensors, best_by: str) -> Mapping[int, float]:
    assert isinstance(sim.algorithm, DPDyLoRA)
    return {rank: measure_split(sim, model, "val")[best_by] for rank, model in sim.algorithm.choices(params).items()}


def test_the_measured_model_has_the_rank_that_validates_best() -> None:
    sim = simulate([40, 24], 2, **DYLORA, train={"epochs": 3, "lr": 0.2}, evaluate={"best_by": "loss"})
    state, _ = play(sim, 2)
    before = {name: value.clone() for name, value in state.params.items()}
    losses = scores_of_ranks(sim, state.params, "loss")
    assert len(set(losses.values())) == len(losses), "ranks that differ"
    model = global_model(sim, state)
    assert model.chosen == {"rank": min(losses, key=losses.__getitem__)}
    assert evaluate(sim, model.params)["val"]["loss"] == min(losses.values())
    assert same_bits(state.params, before)


def test_a_score_that_is_no_number_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = simulate([16], 1, **DYLORA)
    given = iter([{"balanced_accuracy": value} for value in (math.nan, 0.5, 0.5)])
    monkeypatch.setattr("fedsim.measure.global_model.measure_split", lambda *_: next(given))
    monkeypatch.setattr(type(sim.task), "decisive", lambda *_: "balanced_accuracy")
    assert global_model(sim, sim.initial_state()).chosen == {"rank": 2}


def test_a_pass_keeps_its_rank_in_any_company() -> None:
    """Client 1's ranks, step by step, alone and beside a longer client."""
    seen: dict[str, list[list[float]]] = {"alone": [], "together": []}
    ends = {}
    for company, per_block in (("alone", 1), ("together", 2)):
        sim = simulate([40, 24], per_block, **DYLORA, train={"epochs": 3, "batch_size": 8})
        right = sim.algorithm.gradient

        def gradient(params: Tensors, grad_of: Any, step: Step, right: Any = right, own: Any = seen[company]) -> Any:
            own.append(step.chance.tolist())
            return right(params, grad_of, step)

        vars(sim.algorithm)["gradient"] = gradient
        ends[company] = play(sim, 1)[0].params
    # 5 steps of client 0 and 3 of client 1 in each of 3 passes; the first two clients' agreement is looked at, too.
    alone = [chance for (chance,) in seen["alone"]]
    longer, shorter = alone[:15], alone[15:]
    assert [longer[at : at + 5] for at in (0, 5, 10)] == [[longer[at]] * 5 for at in (0, 5, 10)]
    assert [shorter[at : at + 3] for at in (0, 3, 6)] == [[shorter[at]] * 3 for at in (0, 3, 6)]
    assert len({*longer, *shorter}) == 6
    blocks = [chances for chances in seen["together"] if len(chances) == 2][1:]
    assert blocks == [list(pair) for pair in zip(longer, shorter, strict=False)]
    assert furthest(ends["together"], ends["alone"])[0] < 1e-5
