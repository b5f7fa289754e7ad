"""A handful of the kills of ``benchmarks.faults.kills``, at every moment and of a whole node."""

import random
from pathlib import Path

import pytest

from benchmarks.faults import kills


@pytest.mark.slow
def test_killed_at_any_moment_a_run_resumes_to_the_same_bits_and_nobody_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kills, "ROUNDS", 6)
    monkeypatch.setattr(kills, "METHODS", ("fedrep",))
    outcomes, num_same, num_runs = kills.play(1, len(kills.MOMENTS), tmp_path)
    assert (num_same, num_runs) == (1, 1)
    assert len(outcomes) >= len(kills.MOMENTS) - 1, "one may find the run at its end"
    assert [outcome for outcome in outcomes if outcome.noticed is None] == []


def test_every_moment_is_drawn_equally_often_and_somebody_survives() -> None:
    drawn = [kill for _, some in kills.plan(0, 40) for kill in some]
    assert {moment: sum(kill.moment == moment for kill in drawn) for moment in kills.MOMENTS} == dict.fromkeys(
        kills.MOMENTS, 10
    )
    assert all(0 < len(kill.victims) < kill.num_ranks for kill in drawn)
    assert any(kill.victims == (0, 2) for kill in drawn)
    assert kills.draw(random.Random(5), "start") == kills.draw(random.Random(5), "start")
