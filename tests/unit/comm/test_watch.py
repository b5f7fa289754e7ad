"""Silence is told from slowness by counters that stand still."""

import pytest

from fedsim.comm import watch
from fedsim.comm.watch import Signs


def test_rounds_without_news_are_counted_per_rank() -> None:
    signs = Signs()
    assert signs.hear({1: b"0", 2: b"0"}) == {1: 0, 2: 0}
    assert signs.hear({1: b"0", 2: b"10"}) == {1: 1, 2: 0}
    assert signs.hear({1: b"0", 2: b"20"}) == {1: 2, 2: 0}
    assert signs.hear({1: b"10", 2: b"20"}) == {1: 0, 2: 1}


@pytest.mark.parametrize("rank", [0, 3])
def test_rank_0_follows_all_and_the_others_follow_rank_0(rank: int) -> None:
    mine = watch.followed(rank, ["a", "a", "b", "b"])
    assert mine == ({1: "a", 2: "b", 3: "b"} if rank == 0 else {0: "a"})


def test_a_rank_may_be_stopped_for_minutes() -> None:
    assert watch.SILENCE_SECONDS == 300
    assert watch.SILENCE_SECONDS % watch.BEAT_SECONDS == watch.BEAT_SECONDS % watch.POLL_SECONDS == 0
