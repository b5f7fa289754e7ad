"""``launch.py run --ranks N``: ranks that fedsim starts itself."""

import json
from pathlib import Path

import pytest

from tests.distributed.runs import launch, write_config

pytestmark = pytest.mark.slow

REFUSING = """
from fedsim.algorithms.base import Algorithm
from fedsim.errors import UserError

class Refusing(Algorithm):
    def pre_aggregate(self, update):
        if 5 in update.clients:
            raise UserError("client 5", "a scan of another organ", "brains")
        return super().pre_aggregate(update)
"""
FEW = ["rounds=2", "data.max_train=60"]


def test_ranks_run_and_say_who_started_them(tmp_path: Path) -> None:
    done = launch(0, "run", write_config(tmp_path), *FEW, "--out", tmp_path / "run", "--ranks", 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished after round 2") == 1
    facts = json.loads((tmp_path / "run/environment.json").read_text())
    assert (facts["ranks"], facts["launcher"], facts["threads_per_rank"]) == (3, "fedsim", 1)


def test_a_mistake_that_one_rank_of_three_meets_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "refusing.py").write_text(REFUSING)
    words = [*FEW, "algorithm.name=refusing.Refusing"]
    done = launch(0, "run", write_config(tmp_path), *words, "--out", tmp_path / "run", "--ranks", 3)
    line = "error: client 5: found a scan of another organ; expected brains\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_a_mistake_that_all_ranks_meet_is_one_line(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    done = launch(0, "run", config, "train.lr=much", "--out", tmp_path / "a", "--ranks", 3)
    assert done.returncode == 2
    assert done.stderr.startswith("error: command line: train.lr: found 'much'")
    assert done.stderr.count("\n") == 1
