"""Random streams: stable over versions, apart from each other, none of them global."""

import numpy as np
import torch

from fedsim.seeding import derive, numpy_stream, torch_stream
from tests.helpers import simulate

KEYS = (14439132735173760753, 2900195118620501536)


def test_keys_never_change() -> None:
    """Recorded on the first day: another value means that old runs can no longer be repeated."""
    assert derive(0, "cohort", round=1) == KEYS[0]
    assert derive(7, "shuffle/train", round=2, client=3) == KEYS[1]


def test_every_word_matters() -> None:
    keys = {
        derive(seed, purpose, round=round, client=client)
        for seed in range(5)
        for purpose in ("cohort", "shuffle/a", "shuffle/b")
        for round in range(5)
        for client in range(12)
    }
    assert len(keys) == 5 * 3 * 5 * 12
    assert derive(1, "x", round=11, client=1) != derive(1, "x", round=1, client=11)


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    torch.rand(3, generator=torch_stream(0, "x"))
    numpy_stream(0, "x").random(3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_a_stream_begins_the_same_however_much_is_drawn() -> None:
    """Augmentation counts on it: a client's draws do not depend on how long its block trains."""
    few, many = (numpy_stream(3, "augment").random((steps, 8, 6), dtype=np.float32) for steps in (2, 9))
    assert np.array_equal(few, many[:2])


def test_no_two_of_200_000_clients_draw_the_same() -> None:
    """PyTorch's generators keep 32 bits of a seed: of so many clients about five pairs augmented alike."""
    draws = [numpy_stream(0, "augment/train", round=1, client=client).random(4).tobytes() for client in range(200_000)]
    assert len(set(draws)) == 200_000
    seeds = {derive(0, "augment/train", round=1, client=client) >> 1 & 0xFFFFFFFF for client in range(200_000)}
    assert len(seeds) < 200_000, "the reason for numpy's streams"


def test_two_clients_whose_seeds_meet_in_32_bits_are_not_augmented_alike() -> None:
    known: dict[int, int] = {}
    for client in range(400_000):
        low = derive(0, "augment/train", round=1, client=client) >> 1 & 0xFFFFFFFF
        if low in known:
            break
        known[low] = client
    sim = simulate([8], 1, data={"augment": ["flip"]})
    draws = sim.trainer.images.draw((known[low], client), np.ones((2, 1, 2), bool), 0, 1, "train")
    assert draws is not None
    assert not torch.equal(draws[0], draws[1])
