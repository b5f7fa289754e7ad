"""Sums under masks by themselves: they have the bits of plain ones, and who is lost follows from the seed alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.comm.columns import COLUMNS_AT_ONCE
from fedsim.comm.exact import ExactSum
from fedsim.config.privacy import SecureAggregationConfig
from fedsim.privacy.secured_phase import SecuredPhase, lost_clients
from tests.helpers import same_bits

OTHER_PLACES = [(1, 1, "train"), (0, 2, "train"), (0, 1, "B")]


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
