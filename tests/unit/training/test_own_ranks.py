"""Clients of several ranks in one batch: what is beyond a client's own stays zero, and counts for nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.algorithms import METHODS
from fedsim.algorithms.base import GradOf, Step, Tensors
from fedsim.algorithms.fedavg import FedAvg
from fedsim.errors import UserError
from fedsim.kernels import lora as compiled
from fedsim.measure.diagnostics import lora_diagnostics
from fedsim.measure.factor_sums import PRODUCT, FactorSums
from fedsim.models.specs import RANK
from fedsim.phase import train_blocks
from fedsim.schedule.cohort import draw_cohort
from fedsim.simulation import Simulation
from tests.conformance.settings import ACTIVE, SIZES
from tests.conformance.settings import MODEL as MODELS
from tests.helpers import (
    LORA,
    TINY_VIT,
    everything,
    furthest,
    play,
    record_phases,
    simulate,
    train_alone,
    with_method,
    with_params,
)

RANKS = [4, 2, 1, 3, 2]
MODEL = {**TINY_VIT, "lora": {**LORA, "r": 4, "ranks": RANKS}}
#: Methods to which ranks of the clients' own mean nothing.
REFUSING = {
    *("dp_dylora", "fednova", "prrfl", "fed_sb", "ravan"),
    *("med_duallora", "feddpa", "pf2lora", "fedrot_lora", "sfed_lora"),
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.0},
    "momentum": {"momentum": 0.9, "weight_decay": 0.1},
    "clipped": {"momentum": 0.9, "weight_decay": 0.1, "clip_norm": 0.05},
    "adam": {"optimizer": "adam", "momentum": 0.0, "weight_decay": 0.1, "lr": 0.01},
    "adamw": {"optimizer": "adamw", "momentum": 0.0, "weight_decay": 0.1, "lr": 0.01},
}


def own_and_beyond(name: str, value: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A client's factor (..., R, D) or (..., O, R), cut at its rank."""
    if name.endswith("lora_a"):
        return value[..., :rank, :], value[..., rank:, :]
    return value[..., :rank], value[..., rank:]


def check_zeros(tensors: Tensors, rank: int) -> None:
    """Nothing lies beyond the rank, and something below it."""
    for name in (name for name in tensors if "lora_" in name and name != RANK):
        own, beyond = own_and_beyond(name, tensors[name], rank)
        assert own.any()
        assert not beyond.any()


class Watched(FedAvg):
    """FedAvg that looks at every gradient before the engine does."""

    seen: list[Tensors]

    def gradient(self, params: Tensors, grad_of: GradOf, step: Step) -> Tensors:
        del step
        grads = grad_of(params)
        self.seen.append({name: grad.clone() for name, grad in grads.items()})
        return grads


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_both_gradients_are_zero_beyond_a_clients_rank(
    optimizer: str, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so no optimiser moves them, with or without weight decay."""
    if not is_compiled:
        monkeypatch.setattr(compiled, "available", lambda _: False)
    train = {**OPTIMIZERS[optimizer], "steps": 3, "epochs": None}
    sim = with_method(simulate([9] * 5, 5, model=MODEL, train=train), Watched)
    watched = sim.algorithm
    assert isinstance(watched, Watched)
    watched.seen = []
    phases = record_phases(sim)
    play(sim, 2)
    # One client at a time is looked at, too, in the check of the first step.
    stacked = [grads for grads in watched.seen if len(next(iter(grads.values()))) == len(RANKS)]
    assert len(stacked) == 2 * 3 + 1
    for grads in stacked:
        for client, rank in enumerate(RANKS):
            for name in (name for name in grads if name.endswith(("lora_a", "lora_b"))):
                assert not own_and_beyond(name, grads[name][client], rank)[1].any()
    for phase in phases[:-1]:
        for client, after in phase["after"].items():
            check_zeros(after, RANKS[client])


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("use_rslora", [True, False])
def test_a_client_trains_as_with_its_rank_alone(
    use_rslora: bool, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rank 2 beside others of up to 4 as in a run of rank 2, at the scale of rank 2."""
    if not is_compiled:
        monkeypatch.setattr(compiled, "available", lambda _: False)
    lora = {**LORA, "use_rslora": use_rslora}
    mixed, small = (
        simulate(SIZES, 5, model={**TINY_VIT, "lora": {**lora, **own}}) for own in ({"r": 4, "ranks": RANKS}, {"r": 2})
    )
    state, stream = mixed.initial_state(), torch.Generator().manual_seed(3)
    full = {
        name: 0.1 * torch.randn(value.shape, generator=stream) if name.endswith("lora_b") else value
        for name, value in state.params.items()
    }
    cut = {n: own_and_beyond(n, v, 2)[0] if "lora_" in n else v for n, v in full.items() if n != RANK}
    cohort = draw_cohort(mixed.config.clients, mixed.config.train, mixed.sizes, 0, 1)
    assert cohort.clients == (0, 3, 4, 2)
    update, _ = mixed.trainer.train(
        cohort.clients, cohort, with_params(state, full), mixed.algorithm.phases(1)[0], [{} for _ in cohort.clients]
    )
    alone = train_alone(small, 4, with_params(small.initial_state(), cut)).after
    place = cohort.clients.index(4)
    for name, value in alone.items():
        own = own_and_beyond(name, update.after[name][place], 2)[0] if "lora_" in name else update.after[name][place]
        torch.testing.assert_close(own, value[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - REFUSING))
def test_every_method_keeps_the_zeros_and_trains_the_same_in_any_blocks(method: str) -> None:
    """What a method adds to a gradient does not reach beyond a client's rank either."""
    model = {**MODELS.get(method, {}), **MODEL}
    train = {"momentum": 0.0} if method == "scaffold" else {}
    sections: dict[str, Any] = {"model": model, "algorithm": {"name": method, **ACTIVE[method]}, "train": train}
    sims = [simulate(SIZES, size, **sections) for size in (1, 5)]
    phases = [record_phases(sim) for sim in sims]
    ends = [play(sim, 2)[0] for sim in sims]
    assert furthest(everything(sims[1], ends[1]), everything(sims[0], ends[0])) < (1e-4, "")
    for phase in phases[1][:-1]:
        for client, after in phase["after"].items():
            for name in (name for name in after if "lora_" in name):
                assert not own_and_beyond(name, after[name], RANKS[client])[1].any()


@pytest.mark.parametrize("method", sorted(REFUSING))
def test_methods_that_make_no_sense_of_ranks_refuse_them(method: str) -> None:
    with pytest.raises(UserError, match=r"model\.lora\.ranks: found ranks with algorithm\.name: "):
        simulate([4] * 5, 5, model=MODEL, algorithm={"name": method, **ACTIVE[method]})


@pytest.mark.parametrize("sums_alone", [False, True])
def test_a_sum_of_products_has_the_clients_own_scales(sums_alone: bool) -> None:
    """What FlexLoRA returns at full rank is the mean of s_k B_k A_k, in units of the server's s."""
    privacy = {"secure_aggregation": {}} if sums_alone else None
    lora = {**LORA, "r": 32, "ranks": [32, 8], "lora_alpha": 8}
    sim = simulate([20] * 4, 4, model={**TINY_VIT, "lora": lora}, algorithm={"name": "flexlora"}, privacy=privacy)
    phases = record_phases(sim)
    end, _ = play(sim, 1)
    for layer in ("blocks.0.attn.qkv", "blocks.1.attn.qkv"):
        mean = torch.zeros(3, 32, 32, dtype=torch.float64)
        for client, after in phases[0]["after"].items():
            a, b = (after[f"{layer}.lora_{letter}"].double() for letter in "ab")
            mean += 0.25 * (4 if client % 2 else 1) * b @ a
        found = end.params[f"{layer}.lora_b"].double() @ end.params[f"{layer}.lora_a"].double()
        torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-7)


def test_noise_on_single_images_stays_within_a_clients_rank() -> None:
    mechanism = {"mechanism": {"name": "record", "bound": 0.1}, "noise_multiplier": 1.0, "delta": 1e-3}
    sim = simulate([9] * 5, 5, model=MODEL, privacy=mechanism)
    phases = record_phases(sim)
    play(sim, 1)
    for client, after in phases[0]["after"].items():
        check_zeros(after, RANKS[client])


def test_single_images_gradients_have_the_clients_own_scale() -> None:
    """With a bound that cuts nothing and without noise, a step over all images is the plain one."""
    mechanism = {"mechanism": {"name": "record", "bound": 1e6}, "noise_multiplier": 0.0, "delta": 1e-3}
    train = {"batch_size": 9, "momentum": 0.0}
    private, plain = (simulate([9] * 5, 5, model=MODEL, train=train, privacy=words) for words in (mechanism, None))
    end, other = (play(sim, 2)[0] for sim in (private, plain))
    assert furthest(end.params, other.params) < (1e-5, "")


def test_bytes_count_a_clients_own_rank() -> None:
    _, records = play(simulate([8] * 5, 2, model=MODEL), 1)
    # Two layers, three slices each.
    per_rank, head = 2 * 3 * (32 + 32), 3 * 32 + 3
    expected = 4 * (sum(RANKS) * per_rank + 5 * head)
    assert records[0].row["bytes_up"] == records[0].row["bytes_down"] == expected


def test_deviation_of_ranks_is_that_of_the_scaled_products() -> None:
    sim = simulate([8] * 5, 5, model=MODEL)
    state, phase = play(sim, 1)[0], sim.algorithm.phases(2)[0]
    cohort = draw_cohort(sim.config.clients, sim.config.train, sim.sizes, 5, 2)
    phases = record_phases(sim)
    scores: Any = type("Nothing", (), {"measure_before": lambda *_: None})()
    sums = train_blocks(sim, state, phase, cohort, [range(5)], scores)
    found = sums.observed.read(sums.observed.flat)
    layer = "blocks.0.attn.qkv"
    mean = torch.zeros(3, 32, 32, dtype=torch.float64)
    for client, after in phases[0]["after"].items():
        a, b = (after[f"{layer}.lora_{letter}"].double() for letter in "ab")
        mean += 0.2 * (4 / RANKS[client]) * b @ a
    torch.testing.assert_close(found[PRODUCT + layer], mean, rtol=1e-6, atol=1e-9)
    change = {name: torch.zeros(()).expand_as(value) for name, value in state.params.items() if "qkv" in name}
    figures = lora_diagnostics(FactorSums(sums.layers, found), state.params, state.params, change)
    assert figures["aggregation_deviation"] > 0


def test_clients_are_measured_with_their_own_ranks() -> None:
    """A client's scores are those of a run of its rank alone."""
    mixed = simulate([30] * 4, 4, model={**TINY_VIT, "lora": {**LORA, "r": 4, "ranks": [2, 4]}})
    small = simulate([30] * 4, 4, model={**TINY_VIT, "lora": LORA})
    state, stream = mixed.initial_state(), torch.Generator().manual_seed(3)
    full = {n: torch.randn(v.shape, generator=stream) if n.endswith("lora_b") else v for n, v in state.params.items()}
    cut = {n: own_and_beyond(n, v, 2)[0] if "lora_" in n else v for n, v in full.items() if n != RANK}

    def rows(sim: Simulation, params: Tensors, clients: tuple[int, ...]) -> Tensor:
        return sim.trainer.own.rows("test", clients, sim.trainer.ranks.given(clients, params))[0]

    found, expected = rows(mixed, full, (0, 1, 2)), rows(small, cut, (0, 1, 2))
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[1], expected[1], atol=1e-3)
