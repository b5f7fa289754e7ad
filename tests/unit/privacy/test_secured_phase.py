"""Secure aggregation under the engine: not a bit of a run changes, and who is lost is as if never asked."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.algorithms import METHODS
from fedsim.algorithms.base import Algorithm, Payload, Update
from fedsim.comm.exact import ExactSum
from fedsim.comm.group import Group
from fedsim.errors import UserError
from fedsim.measure.client_scores import ClientScores
from fedsim.phase import Sums, meet, train_blocks
from fedsim.schedule.cohort import Cohort, draw_cohort
from fedsim.simulation import Simulation
from fedsim.verbs.check import describe
from tests.conformance.settings import ACTIVE, MODEL, OWN_MODEL
from tests.helpers import BY_PRODUCTS, LORA, TINY_VIT, everything, make_config, play, same_bits, simulate, with_method
from tests.submodels import tiny_submodel
from tests.unit.privacy.test_secure_aggregation import UNIFORM, p_uniform
from tests.unit.privacy.test_secured_sums import phase_of, seed_that_loses

SIZES = [20, 5, 18, 9, 12]


LORA_MODEL = {**TINY_VIT, "lora": LORA}


def secured(**words: Any) -> dict[str, Any]:
    return {"secure_aggregation": words}


def simulation(method: str, privacy: dict[str, Any] | None, per_block: int = 2, **sections: Any) -> Simulation:
    model = OWN_MODEL.get(method, MODEL.get(method, LORA_MODEL))
    algorithm = {"name": method, **ACTIVE.get(method, {})}
    if method == "scaffold":
        sections["train"] = {"momentum": 0}
    return simulate(SIZES, per_block, algorithm=algorithm, model=model, privacy=privacy, **sections)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"local"}))
def test_on_and_off_give_the_same_bits(method: str) -> None:
    # A mechanism that does nothing lets these send what they send under masks.
    quiet = {"mechanism": {"name": "client", "bound": 1e6}, "noise_multiplier": 0.0, "delta": 1e-5}
    plainly = quiet if method in BY_PRODUCTS else {}
    found = []
    for privacy in (plainly or None, {**plainly, **secured()}):
        sim = simulation(method, privacy)
        state, records = play(sim, 2)
        for record in records:
            record.row.pop("simulation_only", None)
        found.append((everything(sim, state), [record.row for record in records], [r.client_rows for r in records]))
    (plain, *plain_rows), (masked, *masked_rows) = found
    assert same_bits(masked, plain)
    assert masked_rows == plain_rows


CLIENT_LEVEL = {"noise_multiplier": 0.5, "delta": 1e-5, "mechanism": {"name": "client", "bound": 0.1}}


def test_on_and_off_give_the_same_bits_with_noise_on_a_lattice() -> None:
    """Messages are whole numbers here."""
    found = []
    for extra in ({}, secured()):
        sim = simulation("fedavg", {**CLIENT_LEVEL, **extra})
        found.append(everything(sim, play(sim, 2)[0]))
    assert same_bits(*found)


def test_a_cohort_that_may_be_one_client_is_refused() -> None:
    with pytest.raises(UserError, match=r"clients.sampling: found poisson with secure_aggregation"):
        simulation("fedavg", {**CLIENT_LEVEL, **secured()}, clients={"sampling": "poisson", "per_round": 1})


def phase_sums(sim: Simulation, without: frozenset[int] = frozenset()) -> tuple[Cohort, Sums]:
    """A first phase, of which the clients ``without`` do not train."""
    state, phase = sim.initial_state(), sim.algorithm.phases(1)[0]
    cohort = draw_cohort(sim.config.clients, sim.config.train, sim.sizes, sim.config.seed, 1)
    blocks = [block for block in cohort.blocks(sim.per_block) if cohort.clients[block.start] not in without]
    return cohort, train_blocks(sim, state, phase, cohort, blocks, ClientScores(sim, state, cohort, [], None))


def test_one_of_five_is_lost_after_masking() -> None:
    """SCAFFOLD has a mean and totals. Without the lost client's block a plain sum is that over the other four."""
    seed = seed_that_loses(1, 5, 0.2)
    sim = simulation("scaffold", secured(dropout=0.2), per_block=1, seed=seed)
    cohort, sums = phase_sums(sim)
    assert sums.secured is not None
    lost = sums.secured.lost
    assert len(lost) == 1
    released, observed = meet(sim.group, sums)

    plain = simulation("scaffold", None, per_block=1, seed=seed)
    expected = meet(plain.group, phase_sums(plain, lost)[1])[0]
    share = sum(weight for c, weight in zip(cohort.clients, cohort.weights.tolist(), strict=True) if c not in lost)
    assert set(released.clients) == set(range(5)) - lost
    assert released.total.keys() == expected.total.keys()
    for group, tensors in expected.total.items():
        assert same_bits(released.total[group], tensors)
    for name, value in expected.mean["params"].items():
        torch.testing.assert_close(released.mean["params"][name], value / share, rtol=1e-15, atol=0)
    assert (observed.losses > 0).all()


def test_a_lost_client_is_marked_and_the_others_weigh_more() -> None:
    seed = seed_that_loses(1, 5, 0.2)
    sim = simulation("fedavg", secured(dropout=0.2), seed=seed)
    _, records = play(sim, 1)
    lost = phase_of(5, seed, dropout=0.2).lost
    assert {row["client"] for row in records[0].client_rows if row.get("lost")} == lost
    timing = records[0].timing["phases"][0]["secure_aggregation"]
    number = sum(value.numel() for value in sim.initial_state().params.values())
    assert 8 * number < timing["bytes_sent"] < 8 * number + 5 * 200
    assert 0 < timing["bytes_received"] < 5 * 200
    assert all(timing[name] > 0 for name in ("key_seconds", "mask_seconds", "unmask_seconds"))


def test_a_mean_of_whole_numbers_is_rounded_once_it_is_one() -> None:
    """10, of the two thirds that stayed, is the mean of 10 and 10 and no 7, and grown no 11."""
    total = ExactSum(3)
    third = torch.full((2,), 1 / 3, dtype=torch.float64)
    total.add_mean({"x": torch.tensor([10, 10])}, third, (0, 1))
    cohort = Cohort((0, 1, 2), torch.full((3,), 1 / 3, dtype=torch.float64))
    assert total.read(total.flat, cohort.growth((0, 1)))["x"].item() == 10
    assert cohort.weights_among((0, 2)).tolist() == [0.5, 0, 0.5]
    assert cohort.weights_among((0, 1, 2)) is not None
    assert torch.equal(cohort.weights_among((0, 1, 2)), cohort.weights)


def test_what_a_rank_sends_is_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that a rank brings to the collective, but for what the simulator observes."""
    wide = {**TINY_VIT, "lora": {"r": 16, "lora_alpha": 4, "target": ["q", "k", "v"]}}
    sent: list[Tensor] = []

    def note(group: Group, values: Tensor) -> Tensor:
        del group
        sent.append(values.clone())
        return values

    for privacy in (None, secured()):
        sim = simulate(SIZES, 5, algorithm={"name": "fedavg"}, model=wide, privacy=privacy)
        _, sums = phase_sums(sim)
        with monkeypatch.context() as patched:
            patched.setattr(Group, "sum_exact", note)
            meet(sim.group, sums)
    number = sum(value.numel() for value in sim.initial_state().params.values())
    plain, masked = (values[:number].numpy() for values in sent)
    assert number > 5000
    assert p_uniform(plain) < 1e-100
    assert p_uniform(masked) > UNIFORM


class Gathering(Algorithm):
    def pre_aggregate(self, update: Update) -> Payload:
        return Payload(gather={"rows": self.sent(update.delta)})


def refusal_of(sim: Simulation) -> str:
    with pytest.raises(UserError) as refusal:
        play(sim, 2)
    return str(refusal.value)


def test_methods_that_need_single_messages_are_refused() -> None:
    gathering = with_method(simulation("fedavg", secured()), Gathering)
    assert refusal_of(gathering).startswith(
        "privacy.secure_aggregation: found Gathering, whose server reads 'rows' row by row; expected null"
    )
    pft = {"name": "fedpft", "form": "released", "distill": {"epochs": 1.0, "batch_size": 8, "micro_batch": 3}}
    model = {**LORA_MODEL, "submodel": {"folder": tiny_submodel(48)}}
    assert "the last client's adapter" in refusal_of(simulate(SIZES, 2, algorithm=pft, model=model, privacy=secured()))
    assert "Local, which sends nothing" in refusal_of(simulation("local", secured()))


def test_check_refuses_before_anything_is_trained() -> None:
    config = make_config(privacy=secured(), algorithm={"name": "local"}, clients={"count": 4})
    with pytest.raises(UserError, match="Local, which sends nothing"):
        describe(config)
    rows = dict(describe(make_config(privacy=secured(), algorithm={"name": "fedrep"}, clients={"count": 5})))
    assert [name for name in rows if "masked" in name] == ["phase body, masked"]
    assert rows["phase body, masked"].startswith("4 of 5 clients must stay")


def test_too_few_left_ends_the_run_with_one_line() -> None:
    seed = seed_that_loses(1, 5, 0.2)
    line = refusal_of(simulation("fedavg", secured(threshold=1.0, dropout=0.2), seed=seed))
    assert line.startswith("privacy.secure_aggregation: found ")
    assert "4 of 5 clients left in round 1, phase train; expected 5 or more, a threshold of 1" in line


def test_a_lone_client_is_refused() -> None:
    line = refusal_of(simulation("fedavg", secured(), clients={"per_round": 1}))
    assert "one client in round 1, phase train, whose message is the sum" in line
