"""The protocol by itself: what the server gets is the sum of those who stayed, and nothing of anybody alone."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from fedsim.privacy.masks import AT_ONCE, Agreement, add_mask
from fedsim.privacy.secure_aggregation import AdvertisedKeys, Client, RevealedShares, SealedShares, Server
from fedsim.privacy.shamir import Share
from fedsim.seeding import numpy_stream

STREAM = "mean/0/60"
UNIFORM = 1e-4


@dataclass
class Transcript:
    """All that went over the server."""

    keys: list[AdvertisedKeys]
    shares: list[SealedShares]
    masked: Any  # (K, P)
    revealed: list[RevealedShares]


def clients_of(number: int, threshold: int, agreement: Agreement | None = None) -> list[Client]:
    """Clients that have advertised and shared; None: each computes every key by itself."""
    return [
        Client(client, threshold, numpy_stream(3, "test", client=client), agreement or Agreement())
        for client in range(number)
    ]


def prepared(clients: Sequence[Client]) -> tuple[list[AdvertisedKeys], list[SealedShares]]:
    keys = [client.advertise() for client in clients]
    shares = [client.share(keys) for client in clients]
    for client in clients:
        client.take({s.sender: s.sealed[client.client] for s in shares if s.sender != client.client})
    return keys, shares


def run(plain_KP: Any, threshold: int, lost: Collection[int] = (), agreement: Agreement | None = None) -> Transcript:
    clients = clients_of(len(plain_KP), threshold, agreement)
    keys, shares = prepared(clients)
    masked_KP = plain_KP.copy().view(np.uint64)
    for client, masked_P in zip(clients, masked_KP, strict=True):
        client.add_masks(masked_P, STREAM)
    stayed = [client.client for client in clients if client.client not in lost]
    return Transcript(keys, shares, masked_KP[stayed], [clients[number].reveal(stayed) for number in stayed])


def summed(transcript: Transcript, threshold: int) -> Any:
    """What the server makes of a transcript alone."""
    server = Server(transcript.keys, threshold)
    server.rebuild(transcript.revealed)
    total_P = transcript.masked.sum(0, dtype=np.uint64)
    server.take_away(total_P, STREAM)
    return total_P.view(np.int64)


def messages(number: int, size: int = 50) -> Any:
    """Numbers of clients whose sum has room, as small as they come and as large."""
    stream = np.random.default_rng(1)
    scale = 2.0 ** stream.integers(0, 59, (number, size))
    return (stream.normal(size=(number, size)) * scale).astype(np.int64)


def p_uniform(numbers: Any) -> float:
    return float(chisquare(np.bincount(numbers.view(np.uint8).ravel(), minlength=256)).pvalue)


@pytest.mark.parametrize("lost", [(), (2,), (0,), (1, 4)])
def test_the_server_has_the_exact_sum_of_those_who_stayed(lost: tuple[int, ...]) -> None:
    plain_KP = messages(5)
    stayed = [client for client in range(5) if client not in lost]
    transcript = run(plain_KP, 3, lost)
    assert (summed(transcript, 3) == plain_KP[stayed].sum(0)).all()


def test_streams_longer_than_what_is_made_at_once() -> None:
    plain_KP = messages(3, 2 * AT_ONCE + 5)
    assert (summed(run(plain_KP, 2, (1,)), 2) == plain_KP[[0, 2]].sum(0)).all()


def test_sums_wrap() -> None:
    plain_KP = np.array([[2**62, -(2**63)], [2**62, -1], [2**62, 0]])
    assert summed(run(plain_KP, 2), 2).tolist() == [-(2**62), 2**63 - 1]


def test_both_ends_of_a_pair_come_to_the_same_key_by_themselves() -> None:
    plain_KP = messages(4)
    apart, together = run(plain_KP, 3), run(plain_KP, 3, agreement=Agreement())
    assert (apart.masked == together.masked).all()
    assert apart.shares == together.shares


def test_a_mask_depends_on_key_and_stream() -> None:
    masks = []
    for key, stream in ((b"a" * 32, "x"), (b"b" * 32, "x"), (b"a" * 32, "y"), (b"a" * 32, "x")):
        masks.append(np.zeros(100, np.uint64))
        add_mask(masks[-1], key, stream, 1)
    assert (masks[0] == masks[3]).all()
    assert not any((one == other).any() for one, other in combinations(masks[:3], 2))
    add_mask(masks[0], b"a" * 32, "x", -1)
    assert not masks[0].any()


def test_a_masked_message_is_uniform_and_a_plain_one_is_not() -> None:
    plain_KP = np.random.default_rng(0).normal(0, 2.0**40, (4, 20_000)).astype(np.int64)
    transcript = run(plain_KP, 3)
    assert p_uniform(plain_KP[0]) < 1e-100
    assert all(p_uniform(masked_P) > UNIFORM for masked_P in transcript.masked)
    assert p_uniform(transcript.masked.sum(0, dtype=np.uint64)) > UNIFORM
    assert p_uniform(summed(transcript, 3)) < 1e-100


def test_what_is_revealed_leaves_a_single_message_uniform() -> None:
    """The server knows every own mask of who stayed and every pair mask of who was lost, and takes away all of them."""
    plain_KP = np.random.default_rng(0).normal(0, 2.0**40, (5, 20_000)).astype(np.int64)
    transcript = run(plain_KP, 3, (4,))
    for place in range(4):
        server = Server(transcript.keys, 3)
        server.rebuild(
            [RevealedShares({place: answer.own_masks[place]}, answer.mask_keys) for answer in transcript.revealed]
        )
        alone_P = transcript.masked[place].copy()
        server.take_away(alone_P, STREAM)
        assert p_uniform(alone_P) > UNIFORM


@pytest.mark.parametrize("lost", [(), (2,), (1, 4)])
def test_nobody_reveals_both_shares_of_a_client(lost: tuple[int, ...]) -> None:
    for answer in run(messages(5), 3, lost).revealed:
        assert answer.mask_keys.keys() == set(lost)
        assert answer.own_masks.keys() == set(range(5)) - set(lost)


def test_nobody_reveals_twice_or_to_too_few_or_masks_twice() -> None:
    clients = clients_of(5, 3)
    prepared(clients)
    with pytest.raises(RuntimeError, match="client 0: 2 clients left, 3 needed"):
        clients[0].reveal([0, 1])
    clients[0].reveal([0, 1, 2, 3])
    with pytest.raises(RuntimeError, match="a second time"):
        clients[0].reveal([0, 1, 2])
    clients[0].add_masks(np.zeros(3, np.uint64), STREAM)
    with pytest.raises(AssertionError, match="masks a second message"):
        clients[0].add_masks(np.zeros(3, np.uint64), STREAM)


def test_shares_travel_sealed() -> None:
    """No share that is revealed later is in what the server passed on, and only its holder opens it."""
    clients = clients_of(3, 2)
    keys, shares = prepared(clients)
    wire = b"".join(text for message in shares for text in message.sealed.values())
    answers = [client.reveal([0, 1, 2]) for client in clients]
    assert not any(share.y.to_bytes(33, "big") in wire for answer in answers for share in answer.own_masks.values())
    other = clients_of(3, 2)[2]
    other.share(keys)
    with pytest.raises(Exception) as refusal:  # cryptography's InvalidTag has no words
        other.take({0: shares[0].sealed[1]})
    assert refusal.type.__name__ == "InvalidTag"


def test_a_wrong_share_of_a_mask_key_is_noticed() -> None:
    """With no more shares than are needed nothing but the advertised key tells."""
    transcript = run(messages(3), 2, (1,))
    share = transcript.revealed[0].mask_keys[1]
    wrong = RevealedShares(transcript.revealed[0].own_masks, {1: Share(share.x, share.y ^ 1)})
    server = Server(transcript.keys, 2)
    with pytest.raises(ValueError, match="client 1's mask key that do not make the key that it advertised"):
        server.rebuild([wrong, transcript.revealed[1]])


def test_too_few_answers_are_refused() -> None:
    transcript = run(messages(5), 3)
    with pytest.raises(ValueError, match="2 shares of a secret that takes 3"):
        Server(transcript.keys, 3).rebuild(transcript.revealed[:2])
