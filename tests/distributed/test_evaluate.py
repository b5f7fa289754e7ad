"""A report is the same on any number of ranks, though each rank measures the models of its own clients."""

from pathlib import Path

from fedsim.configure import load_config
from fedsim.server import run
from fedsim.verbs.evaluate import evaluate_run
from tests.distributed.runs import launch, write_config

CHANGES = ["algorithm.name=fedrep", "clients.count=3", "rounds=1", "data.max_train=60"]


def test_two_ranks_write_the_report_of_one(tmp_path: Path) -> None:
    run(load_config(write_config(tmp_path), CHANGES), tmp_path / "run", resume=False)
    evaluate_run(tmp_path / "run", "best", out=tmp_path / "one", crosses=True)
    done = launch(2, "evaluate", tmp_path / "run", "--cross-site", "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("evaluation.json") == 1
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert "cross_site.csv" in one
    assert one == two
