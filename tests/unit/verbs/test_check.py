"""What ``check`` says beforehand is what a run then does."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedsim import server
from fedsim.verbs.check import describe
from tests.helpers import make_config

#: Of the clients 1 to 3 none arrives within two seconds; a synchronous round without a clock has all of them.
TRACE = "client,speed\n0,1\n1,0.1\n2,0.1\n3,0.1\n"


@pytest.mark.parametrize(
    "aggregation",
    [{"name": "synchronous", "deadline_seconds": 2.0}, {"name": "fedbuff", "buffer_size": 1}],
    ids=["synchronous", "fedbuff"],
)
def test_the_cohort_is_who_arrives(aggregation: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(TRACE)
    clock = {"example_seconds": 1 / 25, "trace": str(tmp_path / "trace.csv"), "aggregation": aggregation}
    config = make_config(rounds=1, data={"max_train": 100}, clients={"count": 4}, clock=clock)
    rows = dict(describe(config))
    assert rows["cohort"].startswith("1 clients in 1 blocks")
    server.run(config, tmp_path / "run", False)
    trained = [json.loads(line) for line in (tmp_path / "run" / "clients.jsonl").read_text().splitlines()]
    assert [row["client"] for row in trained] == [0]
    assert "cohorts" not in json.loads((tmp_path / "run" / "partition.json").read_text())["sha256"]
