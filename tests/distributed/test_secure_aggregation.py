"""Secure aggregation with real torchrun over gloo: with masks and without, on any number of ranks, the same bits.

Kill and resume: ``test_a_killed_rank_costs_nothing``.
"""

import json
from pathlib import Path

import pytest

from tests.distributed.runs import launch, results, same_log, write_config

pytestmark = pytest.mark.slow

SECURED = "privacy={secure_aggregation: {}}"
LOSING = "privacy={secure_aggregation: {threshold: 0.51, dropout: 0.2}}"


@pytest.mark.parametrize("options", [[], ["algorithm.name=scaffold", "train.momentum=0", "clients.per_round=4"]])
def test_masked_runs_have_the_bits_of_a_plain_one(options: list[str], tmp_path: Path) -> None:
    config = write_config(tmp_path)
    for name, ranks, more in (("plain", 0, []), *((str(ranks), ranks, [SECURED]) for ranks in (1, 2, 3))):
        done = launch(ranks, "run", config, "rounds=2", *options, *more, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    plain = (tmp_path / "plain" / "clients.jsonl").read_bytes()
    for name in "123":
        assert results(tmp_path / name)["state_sha256"] == results(tmp_path / "plain")["state_sha256"]
        assert same_log(tmp_path / name, tmp_path / "1")
        assert (tmp_path / name / "clients.jsonl").read_bytes() == plain


def test_the_same_clients_are_lost_on_any_number_of_ranks(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    for ranks in (1, 2, 3):
        done = launch(ranks, "run", config, "rounds=2", LOSING, "--out", tmp_path / str(ranks))
        assert done.returncode == 0, done.stderr
        assert results(tmp_path / str(ranks))["state_sha256"] == results(tmp_path / "1")["state_sha256"]
        assert same_log(tmp_path / str(ranks), tmp_path / "1")
    rows = [json.loads(line) for line in (tmp_path / "1" / "clients.jsonl").read_text().splitlines()]
    assert 0 < sum("lost" in row for row in rows) < len(rows) / 2


def test_too_few_left_end_all_ranks_with_one_line(tmp_path: Path) -> None:
    words = "privacy={secure_aggregation: {threshold: 1.0, dropout: 0.5}}"
    done = launch(2, "run", write_config(tmp_path), words, "--out", tmp_path / "run")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "privacy.secure_aggregation: found" in lines[0]
