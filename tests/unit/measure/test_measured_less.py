"""``evaluate.max_val`` and ``evaluate.test``: less is measured, and nothing else changes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import server
from fedsim.build import build_simulation
from fedsim.comm.group import open_group
from fedsim.configure import load_config
from fedsim.data.splits import at_most
from fedsim.errors import UserError
from fedsim.measure.scores import measure_split
from fedsim.results.reading import load
from fedsim.runfolder.saved import open_saved
from tests.distributed.runs import write_config

PLAIN = ["algorithm={name: fedavg}", "train.lr=0.5"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same run, measured fully and less."""
    folder = tmp_path_factory.mktemp("less")
    changes = {"full": [], "few": ["evaluate.max_val=40"], "at_end": ["evaluate.test=at_end"]}
    for name, own in changes.items():
        server.run(load_config(write_config(folder), [*PLAIN, *own]), folder / name, False)
    return {name: folder / name for name in changes}


def results(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_is_the_same(runs: dict[str, Path]) -> None:
    assert len({results(run)["state_sha256"] for run in runs.values()}) == 1
    assert len({tuple(row["train_loss"] for row in rows(run)) for run in runs.values()}) == 1


def test_some_validation_images_stand_for_all(runs: dict[str, Path]) -> None:
    with open_group() as group:
        full, few = (build_simulation(load_config(runs[name] / "config.yaml"), group) for name in ("full", "few"))
    chosen, everyone = (sim.dataset.val.tolist() for sim in (few, full))
    assert len(chosen) == 40 < len(everyone)
    assert set(chosen) < set(everyone)
    assert chosen == sorted(chosen)
    shares = [torch.bincount(sim.dataset.labels[sim.dataset.val], minlength=10) for sim in (few, full)]
    assert (shares[0] - shares[1] * 40 / len(everyone)).abs().max() <= 1
    assert rows(runs["few"])[0]["val"] != rows(runs["full"])[0]["val"]
    assert rows(runs["few"])[0]["test"] == rows(runs["full"])[0]["test"]


def test_more_than_there_are_is_all_of_them() -> None:
    places, labels = np.arange(3, 9), np.zeros(20, np.int64)
    for limit in (None, 6, 7):
        assert at_most(limit, places, labels, 0, "here") is places
    assert len(at_most(5, places, labels, 0, "here")) == 5


def test_the_test_comes_once_and_is_the_best_rounds(runs: dict[str, Path]) -> None:
    found, full = results(runs["at_end"]), results(runs["full"])
    assert [row["test"] for row in rows(runs["at_end"])] == [None] * 3
    assert {key: found[key] for key in ("best_round", "val", "test")} == {
        key: full[key] for key in ("best_round", "val", "test")
    }
    assert json.loads((runs["at_end"] / "adapter/about.json").read_text())["test"] == full["test"]
    with open_saved(runs["at_end"], "best") as saved:
        assert saved.row["test"] == full["test"] == measure_split(saved.sim, saved.params, "test")
    best = load(runs["at_end"]).rounds.set_index("round").loc[full["best_round"]]
    assert best["test.accuracy"] == full["test"]["accuracy"]


def test_clients_scores_need_the_test(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.test: found at_end with clients: true"):
        load_config(write_config(tmp_path), ["evaluate={clients: true, test: at_end}"])
