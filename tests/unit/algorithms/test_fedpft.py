"""What FedPFT chooses, sends and asks for, on made-up counts."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.algorithms.base import PARAMS, TRAINED_KINDS, Aggregate, ServerState, Update
from fedsim.algorithms.fedpft import COUNTS, FedPFT, apoz, neurons_to_distil
from fedsim.comm.exact import ExactSum
from fedsim.errors import UserError
from fedsim.models.specs import ParamSpec
from fedsim.phase import flattened, regrouped
from tests.helpers import facts_of, update_of

START = "submodel.blocks.1."
SPECS = {
    "blocks.1.attn.qkv.lora_a": ParamSpec((3, 2, 4), "lora_a"),
    "head.bias": ParamSpec((3,), "head"),
    # As wide as it is deep: shapes alone do not tell rows from columns.
    f"{START}mlp.fc1.weight": ParamSpec((4, 4), "proxy", 0),
    f"{START}mlp.fc1.bias": ParamSpec((4,), "proxy", 0),
    f"{START}mlp.fc2.weight": ParamSpec((4, 4), "proxy", 1),
    f"{START}mlp.fc2.bias": ParamSpec((4,), "proxy"),
    "zeros.1": ParamSpec((4,), "count"),
    "num_tokens": ParamSpec((), "count"),
}
ZEROS = torch.tensor([5, 0, 9, 5])


def method(num_rounds: int = 4, **settings: Any) -> FedPFT:
    return FedPFT(FedPFT.Config(**settings), facts_of(SPECS, num_rounds))


def state() -> ServerState:
    whole = {name: spec.kind == "count" for name, spec in SPECS.items()}
    return ServerState(0, {n: torch.zeros(s.shape, dtype=torch.int64 if whole[n] else None) for n, s in SPECS.items()})


def update(fedpft: FedPFT, clients: tuple[int, ...], cohort: tuple[int, ...]) -> Update:
    (phase,) = fedpft.phases(1)
    before = state().params
    trained = [name for name, spec in SPECS.items() if spec.kind in phase.kinds]
    numbers = torch.tensor(clients)
    after: dict[str, Tensor] = {
        name: before[name] + numbers.to(before[name].dtype).view(-1, *[1] * before[name].dim()) for name in trained
    }
    return update_of(clients, before, after, phase=phase, cohort=cohort)


def test_neurons_with_most_zeros_are_distilled_and_the_first_of_equal_ones_stay() -> None:
    assert neurons_to_distil(ZEROS, 0.5).tolist() == [False, False, True, True]
    assert neurons_to_distil(ZEROS, 0.25).tolist() == [True, False, True, True]
    assert neurons_to_distil(ZEROS, 0.0).all()
    # The share is cut to whole neurons.
    assert neurons_to_distil(ZEROS, 0.74).sum() == 2
    assert apoz(ZEROS, torch.tensor(10)).tolist() == [0.5, 0.0, 0.9, 0.5]


def test_a_shuffle_decides_among_equal_ones_alone() -> None:
    found = [neurons_to_distil(ZEROS, 0.5, random.Random(seed).shuffle).tolist() for seed in range(20)]
    assert all(chosen[2] and not chosen[1] for chosen in found)
    assert {chosen[0] for chosen in found} == {True, False}


def test_rounds_that_align() -> None:
    assert [method().aligns_after(round) for round in (1, 2, 3, 4)] == [True, True, True, False]
    assert [method(form="released").aligns_after(round) for round in (1, 2, 3, 4)] == [True] * 4
    assert [method(align_interval=3).aligns_after(round) for round in (1, 2, 3, 4)] == [False, False, True, False]
    for idle in (method(align_interval=None), method(align_interval=9), method(form="released", align_interval=9)):
        assert not any(idle.aligns_after(round) for round in (1, 2, 3, 4))
    # What nobody needs is not counted.
    assert method(align_interval=2).phases(1)[0].kinds == TRAINED_KINDS
    assert method(align_interval=2).phases(2)[0].kinds == TRAINED_KINDS | {"count"}
    assert [method(form=form).phases(1)[0].counts_padding for form in ("paper", "released")] == [False, True]


def test_counts_travel_as_exact_sums_of_any_size() -> None:
    payload = method().pre_aggregate(update(method(), (3, 1), (3, 1)))
    assert set(payload.mean) == {PARAMS}
    assert set(payload.mean[PARAMS]) == {"blocks.1.attn.qkv.lora_a", "head.bias"}
    assert set(payload.total) == {COUNTS}
    assert set(payload.total[COUNTS]) == {"zeros.1", "num_tokens"}
    many = {"zeros.1": torch.tensor([[2**40, 1], [2**40, 2]])}
    total = ExactSum(2)
    total.add_sum(many, (3, 1))
    assert total.read(total.flat)["zeros.1"].tolist() == [2**41, 3]
    with pytest.raises(UserError, match="client 1, tensor zeros"):
        ExactSum(2).add_sum({"zeros": torch.tensor([[0], [2**53]])}, (3, 1))


def test_alignment_trains_rows_inside_and_columns_outside() -> None:
    aggregate = Aggregate((1, 3), total={COUNTS: {"zeros.1": ZEROS, "num_tokens": torch.tensor(10)}})
    wanted = method(distill={"lr": 0.5}).align(state(), aggregate, 0)
    chosen = torch.tensor([False, False, True, True])
    assert torch.equal(wanted.trained[f"{START}mlp.fc1.weight"], chosen[:, None].expand(4, 4))
    assert torch.equal(wanted.trained[f"{START}mlp.fc1.bias"], chosen)
    assert torch.equal(wanted.trained[f"{START}mlp.fc2.weight"], chosen.expand(4, 4))
    assert wanted.trained[f"{START}mlp.fc2.bias"].all()
    assert set(wanted.trained) == {name for name, spec in SPECS.items() if spec.kind == "proxy"}
    assert not wanted.student
    assert (wanted.settings.alpha, wanted.settings.form, wanted.settings.lr) == (0.01, "paper", 0.5)
    assert method().diagnostics(state(), aggregate) == {"apoz": pytest.approx(0.475), "never_zero": 1}
    assert method().diagnostics(state(), Aggregate((1, 3))) == {}


@pytest.mark.parametrize("blocks", [[(1, 7), (2,)], [(2,), (7,), (1,)]])
def test_released_the_student_has_the_adapter_of_the_highest_client(blocks: list[tuple[int, ...]]) -> None:
    fedpft, cohort = method(form="released"), (1, 7, 2)
    total = ExactSum(3)
    for clients in [(), *blocks]:
        payload = fedpft.pre_aggregate(update(fedpft, clients, cohort))
        total.add_sum(flattened(payload.total), clients)
    wanted = fedpft.align(state(), Aggregate(cohort, total=regrouped(payload.total, total.read(total.flat))), 0)
    assert {name: value.unique().tolist() for name, value in wanted.student.items()} == {
        "blocks.1.attn.qkv.lora_a": [7.0]
    }
    assert (wanted.settings.alpha, wanted.settings.form) == (0.0, "released")


def test_a_model_without_cut_feed_forwards_is_one_clear_line() -> None:
    specs = {name: spec for name, spec in SPECS.items() if spec.kind in TRAINED_KINDS}
    with pytest.raises(UserError, match=r"^model\.submodel: found .*fedpft; expected \{folder: DIR\}"):
        FedPFT(FedPFT.Config(), facts_of(specs))
