"""From an empty folder to table, figures and page: killed in the middle and started again, a sweep gives the same."""

from pathlib import Path

import pandas as pd
import pytest

from fedsim import server
from fedsim.results.comparing import Wish
from fedsim.results.figures.drawing import draw
from fedsim.runfolder.runlog import Round, RunLog
from fedsim.verbs import sweep as verb
from fedsim.verbs.compare import comparisons, report
from tests.unit.verbs.test_sweep import RANKS, write_sweep

GRID = {"algorithm.name": ["fedavg", "fedprox", "deer", "ffa_lora"], "seed": [3, 4, 5]}
#: What is not the same on another machine, or at another time.
SECONDS = ["seconds"]


pytestmark = pytest.mark.slow


class Killed(BaseException):
    """What nobody catches."""


def test_a_sweep_that_was_killed_gives_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four methods and three seeds; ``tests/distributed/test_sweep.py`` kills the processes of such a sweep."""
    monkeypatch.setattr(verb, "run_cell", lambda cell, _: server.run(cell.config, cell.folder, resume=True) and 0)
    file = write_sweep(tmp_path, grid=GRID)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert verb.run_sweep(file, whole, RANKS, str)

    rounds, end_round = iter(range(100)), RunLog.end_round

    def end_or_die(log: RunLog, record: Round) -> None:
        end_round(log, record)
        if next(rounds) == 10:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "end_round", end_or_die)
        with pytest.raises(Killed):
            verb.run_sweep(file, killed, RANKS, str)
    states = [state for _, state in verb.status(file, killed)[:-1]]
    assert states == ["finished"] * 5 + ["after round 1 of 2"] + ["missing"] * 6
    assert verb.run_sweep(file, killed, RANKS, str)

    tables = []
    for folder in (whole, killed):
        results, found = comparisons([folder], Wish())
        text = report([folder], Wish(), None).read_text()
        assert all(f"{score:.3f}" in text for score in found[0].numbers["mean"])
        tables.append(found[0].numbers.drop(columns=SECONDS))
    draw(results, found, killed / "figures")
    assert (killed / "figures" / "0_accuracy_scores.png").read_bytes().startswith(b"\x89PNG")
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert tables[0]["seeds"].tolist() == [3] * 4
