"""What every method must keep, whatever it does: run for all of ``fedsim.algorithms.METHODS``."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedsim.algorithms import METHODS
from fedsim.algorithms.base import Payload, ServerState, Update
from fedsim.comm.exact import ExactSum
from fedsim.errors import UserError
from fedsim.models.specs import ParamSpec
from fedsim.phase import flattened
from fedsim.privacy.client_level import ClientLevelLayer
from fedsim.privacy.messages import message_of
from fedsim.schedule.cohort import Cohort
from tests.conformance.settings import (
    ACTIVE,
    ALL_IN_ONE,
    CASES,
    NEUTRAL,
    OWN_MODEL,
    SERVER_CHANGES,
    SGD,
    SINGLE_STEP,
    SIZES,
    TRUE_SUMS,
    active,
)
from tests.helpers import (
    BY_PRODUCTS,
    cohort_of,
    everything,
    furthest,
    play,
    record_phases,
    same_bits,
    simulate,
    train_alone,
)

every_method = pytest.mark.parametrize("method", METHODS)


def test_every_method_is_tested() -> None:
    assert ACTIVE.keys() == METHODS.keys()


@every_method
@pytest.mark.parametrize("case", CASES)
def test_stacked_is_sequential(method: str, case: str) -> None:
    sections = {**CASES[case], **active(method)}
    if method in ("prrfl", "harmofl") and "adamw" in case:
        # Adam's first step makes a zero factor a matrix of signs. Most of its spectrum is rounding: raised to the
        # others' amplitude it is whatever the last bits say. Nor has A a gradient then but for the perturbation's, of
        # which single elements are as small as rounding, and Adam makes them large. The head starts from random values.
        sections["model"] = {**sections["model"], "lora": None, "train": "head"}
    one_by_one, at_once = simulate(SIZES, 1, **sections), simulate(SIZES, ALL_IN_ONE, **sections)
    sequential, alone = play(one_by_one, 3)
    stacked, together = play(at_once, 3)
    # SCAFFOLD divides changes by the learning rate, PF2LoRA a difference of gradients by how far apart they are, and
    # rounding with them.
    limit = 1e-4 if method in ("scaffold", "pf2lora") else 1e-5
    assert furthest(everything(at_once, stacked), everything(one_by_one, sequential)) < (limit, "")
    for one, other in zip(alone, together, strict=True):
        assert other.row["train_loss"] == pytest.approx(one.row["train_loss"], rel=limit)
        assert [row["client"] for row in one.client_rows] == [row["client"] for row in other.client_rows]


@every_method
def test_any_cut_into_blocks_gives_the_same(method: str) -> None:
    sims = [simulate(SIZES, size, **active(method)) for size in (1, 2, 3, ALL_IN_ONE)]
    ends = [everything(sim, play(sim, 1)[0]) for sim in sims]
    for end in ends[1:]:
        assert furthest(end, ends[0]) < (1e-5, "")


@every_method
def test_twice_gives_the_same_bits(method: str) -> None:
    sections = {**CASES["augmented"], **active(method)}
    sims = [simulate(SIZES, 2, **sections) for _ in range(2)]
    (first, records), (second, again) = (play(sim, 2) for sim in sims)
    assert same_bits(everything(sims[0], first), everything(sims[1], second))
    assert [record.row for record in records] == [record.row for record in again]


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"local"}))  # whose clients send nothing: that is refused
def test_who_has_learned_nothing_sends_nothing_that_is_clipped(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else clipping shrinks what is no change, and weights that do not sum to one move the model."""
    sections = active(method)
    sections["train"] = {**sections.get("train", {}), "lr": 1e-12, "weight_decay": 0.0}
    quiet = {"mechanism": {"name": "client", "bound": 1e6}, "noise_multiplier": 0.0, "delta": 1e-5}
    if method in TRUE_SUMS:
        with pytest.raises(UserError, match=r"privacy\.mechanism: found on whole messages with "):
            simulate(SIZES, 2, **sections, privacy=quiet)
        return
    sim = simulate(SIZES, 2, **sections, privacy=quiet)
    largest: list[float] = []
    clip = ClientLevelLayer.pre_aggregate

    def watched(layer: ClientLevelLayer, state: ServerState, update: Update, payload: Payload) -> Payload:
        largest.extend(float(value.abs().max()) for value in message_of(payload).values() if value.numel())
        return clip(layer, state, update, payload)

    monkeypatch.setattr(ClientLevelLayer, "pre_aggregate", watched)
    play(sim, 3)
    # FedRot-LoRA turns factors, and SCAFFOLD sends gradients.
    assert max(largest) < (1e-9 if method not in ("fedrot_lora", "scaffold") else 10)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"local"} - TRUE_SUMS))
def test_clipping_without_effect_and_without_noise_changes_no_bit(method: str) -> None:
    mechanism = {"name": "client", "bound": 1e6}
    quiet = {"mechanism": mechanism, "noise_multiplier": 0.0, "delta": 1e-5}
    private, plain = (simulate(SIZES, 2, **active(method), privacy=privacy) for privacy in (quiet, None))
    (end, _), (other, _) = play(private, 2), play(plain, 2)
    found, expected = everything(private, end), everything(plain, other)
    if method in BY_PRODUCTS:
        # What travels is another thing then.
        assert furthest(found, expected) < (1e-4, "")
    else:
        assert same_bits(found, expected)


@every_method
def test_a_round_of_nobody_changes_nothing(method: str) -> None:
    """With seed 1 the second round's coins leave all three clients out."""
    clients = {"count": 3, "sampling": "poisson", "per_round": 1}
    sim = simulate([8, 8, 8], 2, **active(method), clients=clients, seed=1, rounds=3)
    first, (record,) = play(sim, 1)
    before = everything(sim, first)
    second, (empty,) = play(sim, 1, first)
    assert record.client_rows
    assert not empty.client_rows
    assert empty.row["train_loss"] is None
    assert same_bits(everything(sim, second), before)
    assert play(sim, 1, second)[1][0].client_rows


def test_noise_hides_a_round_of_nobody() -> None:
    privacy = {"mechanism": {"name": "client", "bound": 0.1}, "noise_multiplier": 1.0, "delta": 1e-5}
    clients = {"count": 3, "sampling": "poisson", "per_round": 1}
    sim = simulate([8, 8, 8], 2, clients=clients, seed=1, rounds=3, privacy=privacy)
    first = play(sim, 1)[0]
    second, (empty,) = play(sim, 1, first)
    assert not empty.client_rows
    assert all(not torch.equal(second.params[name], first.params[name]) for name in first.params)


@every_method
def test_any_order_of_blocks_gives_the_same_bits(method: str) -> None:
    sim = simulate(SIZES, 1, **active(method))
    present = [client for client, size in enumerate(SIZES) if size]
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    state = sim.initial_state()
    for phase in sim.algorithm.phases(1):
        payloads = []
        for client, weight in zip(present, weights, strict=True):
            cohort = Cohort((client,), weight[None])
            update, _ = sim.trainer.train((client,), cohort, state, phase, [{}])
            payload = sim.algorithm.pre_aggregate(update)
            # A number of its own, since a phase may send nothing.
            payload = replace(payload, total={**payload.total, "test": {"count": torch.ones(1)}})
            payloads.append((payload, weight[None], (client,)))
        sums = []
        for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
            total = ExactSum(len(present))
            for payload, weight, clients in (payloads[place] for place in order):
                total.add_mean(flattened(payload.mean), weight, clients)
                total.add_sum(flattened(payload.total), clients)
            sums.append(total.flat)
        assert torch.equal(sums[0], sums[1])
        assert torch.equal(sums[0], sums[2])


@pytest.mark.parametrize("method", NEUTRAL)
def test_neutral_setting_is_fedavg_bit_for_bit(method: str) -> None:
    settings, model = NEUTRAL[method]
    sections = {"model": model, "train": {**SGD, "clip_norm": 0.5, **SINGLE_STEP.get(method, {})}}
    neutral, _ = play(simulate(SIZES, 3, algorithm={"name": method, **settings}, **sections), 2)
    fedavg, _ = play(simulate(SIZES, 3, algorithm={"name": "fedavg"}, **sections), 2)
    assert same_bits(neutral.params, fedavg.params)


@every_method
def test_active_setting_does_something_else(method: str) -> None:
    """On the server, or in what the clients go on with."""
    if method != "fedavg":
        own = active(method) | {"train": {"batch_size": 32}}
        own["model"] = OWN_MODEL.get(method, own["model"])
        sims = [simulate([40, 6], 2, **sections) for sections in (own, own | {"algorithm": {"name": "fedavg"}})]
        ends = [play(sim, 2)[0] for sim in sims]
        used = []
        for sim, end in zip(sims, ends, strict=True):
            kept = sim.algorithm.client_params([sim.store.read(client) for client in (0, 1)], end.params)["own"]
            used.append({name: value.expand(2, *value.shape) for name, value in end.params.items()} | dict(kept))
        assert not same_bits(*used)


@every_method
def test_only_what_a_phase_trains_changes(method: str) -> None:
    sim = simulate(SIZES, 2, **active(method))
    phases = record_phases(sim)
    before = sim.initial_state().params
    play(sim, 1)
    assert len(phases) - 1 == len(sim.algorithm.phases(1))
    for phase, seen in zip(sim.algorithm.phases(1), phases, strict=False):
        trained = {name for name, spec in sim.held.specs.items() if spec.kind in phase.kinds}
        assert all(set(after) == trained for after in seen["after"].values())
        changed = {name for name, value in seen["server"].items() if not torch.equal(value, before[name])}
        # Some is the server's to change, as the frozen weights are where a method does that.
        turned = {name for name, spec in sim.held.specs.items() if spec.kind in SERVER_CHANGES.get(method, ())}
        shifts = {name for name, spec in sim.held.specs.items() if spec.kind == "shift"}
        assert changed <= ((trained | turned) & set(sim.algorithm.sent(before))) | shifts
        assert changed or sim.store.sizes(), "a phase that changes nothing"
        before = seen["server"]


@every_method
def test_hooks_leave_their_input_alone(method: str) -> None:
    sim = simulate(SIZES, ALL_IN_ONE, **active(method))
    method_object = sim.algorithm
    seen = []

    def careful(state: Any, aggregate: Any) -> Any:
        given = (state.params, state.extra, flattened(aggregate.mean))
        copies = [{n: v.clone() for n, v in tensors.items()} for tensors in given]
        result = type(method_object).post_aggregate(method_object, state, aggregate)
        for copy, value in zip(copies, given, strict=True):
            seen.append(same_bits(copy, value))
        return result

    vars(method_object)["post_aggregate"] = careful
    start = sim.initial_state()
    first = {name: value.clone() for name, value in start.params.items()}
    play(sim, 1, start)
    assert seen
    assert all(seen)
    assert same_bits(first, start.params)


@every_method
def test_the_tensors_of_layers_stay(method: str) -> None:
    sim = simulate([8, 4], 2, **active(method))
    layers = {"bound": torch.ones(1)}
    end, _ = play(sim, 1, replace(sim.initial_state(), layers=layers))
    assert end.layers == layers


@every_method
def test_an_idle_rank_knows_the_payload(method: str) -> None:
    sim = simulate(SIZES, 2, **active(method))
    state = sim.initial_state()
    for phase in sim.algorithm.phases(1):
        payloads = []
        for clients in ((), (0, 3)):
            update, losses = sim.trainer.train(clients, cohort_of(*clients), state, phase, [{} for _ in clients])
            assert losses.shape == (len(clients),)
            payloads.append(sim.algorithm.pre_aggregate(update))
        none, two = payloads
        for part in ("mean", "total", "gather"):
            idle, busy = (flattened(vars(payload)[part]) for payload in (none, two))
            assert list(idle) == list(busy)
            for name, value in busy.items():
                assert idle[name].shape == (0, *value.shape[1:])
                assert idle[name].dtype == value.dtype
                assert len(value) == 2


@every_method
def test_local_parameters_are_never_sent(method: str) -> None:
    sim = simulate(SIZES, 2, **active(method))
    sim.algorithm.specs = {**sim.held.specs, "head.bias": ParamSpec((3,), "local")}
    state = sim.initial_state()
    for phase in sim.algorithm.phases(1):
        payload = sim.algorithm.pre_aggregate(train_alone(sim, 0, state, phase))
        names = [name for part in (payload.mean, payload.total, payload.gather) for name in flattened(part)]
        assert not any("head.bias" in name for name in names)
