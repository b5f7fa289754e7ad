"""Secure aggregation under the engine: not a bit of a run changes, and who is lost is as if never asked."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.algorithms import METHODS
from fedsim.algorithms.base import Algorithm, Payload, Update
from fedsim.comm.exact import COLUMNS_AT_ONCE, ExactSum
from fedsim.comm.group import Group
from fedsim.config.privacy import SecureAggregationConfig
from fedsim.errors import UserError
from fedsim.measure.client_scores import ClientScores
from fedsim.phase import Sums, meet, train_blocks
from fedsim.privacy.secured_phase import SecuredPhase, lost_clients
from fedsim.schedule.cohort import Cohort, draw_cohort
from fedsim.simulation import Simulation
from fedsim.verbs.check import describe
from tests.conformance.test_methods import ACTIVE, MODEL, OWN_MODEL
from tests.helpers import (
    BY_PRODUCTS,
    LORA,
    TINY_VIT,
    everything,
    make_config,
    play,
    same_bits,
    simulate,
    tiny_submodel,
    with_method,
)
from tests.unit.privacy.test_secure_aggregation import UNIFORM, p_uniform

SIZES = [20, 5, 18, 9, 12]
OTHER_PLACES = [(1, 1, "train"), (0, 2, "train"), (0, 1, "B")]
LORA_MODEL = {**TINY_VIT, "lora": LORA}


def secured(**words: Any) -> dict[str, Any]:
    return {"secure_aggregation": words}


def simulation(method: str, privacy: dict[str, Any] | None, per_block: int = 2, **sections: Any) -> Simulation:
    model = OWN_MODEL.get(method, MODEL.get(method, LORA_MODEL))
    algorithm = {"name": method, **ACTIVE.get(method, {})}
    if method == "scaffold":
        sections["train"] = {"momentum": 0}
    return simulate(SIZES, per_block, algorithm=algorithm, model=model, privacy=privacy, **sections)


def phase_of(clients: int, seed: int = 0, **words: Any) -> SecuredPhase:
    return SecuredPhase(SecureAggregationConfig(**words), seed, 1, "train", range(clients))


def seed_that_loses(number: int, clients: int, dropout: float) -> int:
    """The first seed by which so many are lost, in round 1."""
    return next(seed for seed in range(200) if len(lost_clients(dropout, seed, 1, "train", range(clients))) == number)


def terms_of(number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Means and totals on each of the grids, wide ones, complex and whole numbers."""
    stream = torch.Generator().manual_seed(0)

    def draw(*shape: int, size: float) -> Tensor:
        return size * torch.randn(number, *shape, generator=stream, dtype=torch.float64)

    means = {"small": draw(3, 4, size=1e-8), "large": draw(5, size=100.0), "wide": draw(COLUMNS_AT_ONCE + 7, size=0.1)}
    totals = {
        "spectrum": torch.complex(draw(4, size=1.0), draw(4, size=1.0)),
        "huge": draw(2, size=1e12),
        "count": torch.arange(number),
        "lattice": torch.randint(-(2**40), 2**40, (number, 6), generator=stream),
    }
    return means, totals


def summed(clients: list[int], blocks: list[list[int]], phase: SecuredPhase | None) -> tuple[ExactSum, Tensor]:
    """The sums over blocks of clients as a rank of them all has them, and what it sends."""
    means, totals = terms_of(5)
    weights = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1], dtype=torch.float64)
    total = ExactSum(5, masks=None if phase is None else phase.masks)
    for block in blocks:
        here = [client for client in block if client in clients]
        total.add_mean({name: value[here] for name, value in means.items()}, weights[here], here)
        total.add_sum({name: value[here] for name, value in totals.items()}, here)
    return total, total.flat


@pytest.mark.parametrize("number_lost", [0, 1, 2])
def test_an_unmasked_sum_has_the_bits_of_a_plain_one(number_lost: int) -> None:
    phase = phase_of(5, seed_that_loses(number_lost, 5, 0.2), threshold=0.51, dropout=0.2)
    stayed = list(phase.stayed)
    plain, expected = summed(stayed, [[0, 1, 2, 3, 4]], None)
    masked, sent = summed(stayed, [[4], [], [2, 0], [1, 3]], phase)
    assert (sent[:-2] != expected[:-2]).all()
    found = masked.unmask(sent, phase.unmask().take_away)
    assert torch.equal(found, expected)
    assert same_bits(masked.read(found), plain.read(expected))
    assert masked.below_grid(found) == plain.below_grid(expected)


def test_ranks_whose_own_tensors_fit_finer_grids() -> None:
    """Each rank keeps the grids that its own clients fit; what is read is on the grid that all agree on."""
    phase = phase_of(5)
    plain, expected = summed(list(range(5)), [[0, 1, 2, 3, 4]], None)
    ranks = [summed(list(range(5)), [block], phase)[0] for block in ([0], [3, 1], [2, 4])]
    peaks = torch.stack([rank.peaks for rank in ranks]).amax(0)
    for rank in ranks:
        rank.agree(peaks)
    total = torch.stack([rank.flat for rank in ranks]).sum(0)
    assert same_bits(ranks[0].read(ranks[0].unmask(total, phase.unmask().take_away)), plain.read(expected))


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


def test_the_server_is_given_messages_alone() -> None:
    """Public keys, sealed shares and one kind of share: of five clients' secrets none is in what went over it."""
    phase = phase_of(5, seed_that_loses(1, 5, 0.2), dropout=0.2)
    phase.unmask()
    wire = b"".join(
        [
            *(key.cipher_key + key.mask_key for key in phase.keys),
            *(text for message in phase.shares for text in message.sealed.values()),
            *(
                share.y.to_bytes(33, "big")
                for answer in phase.revealed
                for shares in (answer.own_masks, answer.mask_keys)
                for share in shares.values()
            ),
        ]
    )
    secrets = [
        getattr(client, name)
        for client in phase._clients.values()
        for name in ("_cipher_secret", "_mask_secret", "_own_mask")
    ]
    assert len(set(secrets)) == 15
    assert not any(secret in wire for secret in secrets)
    for answer in phase.revealed:
        assert not answer.own_masks.keys() & answer.mask_keys.keys()


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


@pytest.mark.parametrize(
    ("threshold", "clients", "expected"),
    [(2 / 3, 3, 2), (2 / 3, 5, 4), (0.7, 10, 7), (0.55, 100, 55), (1.0, 5, 5), (0.51, 2, 2)],
)
def test_threshold_is_a_share_rounded_up(threshold: float, clients: int, expected: int) -> None:
    assert phase_of(clients, threshold=threshold).threshold == expected


def test_every_phase_and_round_has_keys_of_its_own() -> None:
    settings = SecureAggregationConfig()
    places = [(0, 1, "train"), *OTHER_PLACES]
    keys = {
        key.mask_key for seed, round, phase in places for key in SecuredPhase(settings, seed, round, phase, (0, 1)).keys
    }
    assert len(keys) == 8


def test_who_is_lost_depends_on_seed_round_phase_and_client_alone() -> None:
    many = lost_clients(0.5, 0, 1, "train", range(1000))
    assert 430 < len(many) < 570
    assert lost_clients(0.5, 0, 1, "train", range(500, 600)) == {client for client in many if 500 <= client < 600}
    others = [lost_clients(0.5, seed, round, phase, range(1000)) for seed, round, phase in OTHER_PLACES]
    assert all(400 < len(many ^ other) < 600 for other in others)
    assert not lost_clients(0.0, 0, 1, "train", range(1000))
