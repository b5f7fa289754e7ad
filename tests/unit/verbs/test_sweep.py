"""Sweeps of tiny runs, in this process; ``tests/distributed/test_sweep.py`` has them as they are started."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from fedsim import server
from fedsim.errors import UserError
from fedsim.results import load
from fedsim.results.comparing import Wish
from fedsim.results.likeness import unlike
from fedsim.verbs import sweep as verb
from fedsim.verbs.compare import comparisons, written
from tests.helpers import TINY_VIT

BASE = {
    "name": "base",
    "rounds": 2,
    "model": {**TINY_VIT, "lora": {"r": 2}},
    "data": {"name": "digits", "image_size": 14, "max_train": 60, "fractions": {"val": 0.05, "test": 0.05}},
    "clients": {"count": 5, "per_round": 3, "partition": {"name": "dirichlet", "alpha": 1.0}},
    "train": {"lr": 0.05, "batch_size": 8},
}
RANKS = verb.Ranks(1, Path("launch.py"))
METHODS = ["fedavg", "fedprox", "deer"]
GRID = {"algorithm.name": METHODS, "seed": [3, 4]}


def write_sweep(folder: Path, **words: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"base": "base.yaml", **words}))
    return folder / "sweep.yaml"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """File and folder of a sweep of three methods and two seeds."""
    folder = tmp_path_factory.mktemp("swept")
    file = write_sweep(folder, grid=GRID)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "run_cell", lambda cell, _: server.run(cell.config, cell.folder, resume=True) and 0)
        assert verb.run_sweep(file, folder / "out", RANKS, str)
    return file, folder / "out"


def test_methods_share_data_splits_and_cohorts(swept: tuple[Path, Path]) -> None:
    runs = load(swept[1]).runs
    assert unlike(runs) == []
    digests = [name for name in runs if name.startswith("sha256.")]
    assert runs.groupby("config.seed")[digests].nunique().eq(1).all(axis=None)
    # The seed decides on clients and cohorts; the split has a seed of its own.
    counts = runs[digests].nunique()
    assert counts["sha256.clients"] == counts["sha256.cohorts"] == 2
    assert counts["sha256.test"] == counts["sha256.validation"] == counts["sha256.data"] == 1
    # And the rows say the same: who took part in which round.
    clients = load(swept[1]).clients.merge(runs[["run", "config.seed"]])
    drawn = clients.drop_duplicates(["run", "round", "client"]).groupby(["config.seed", "run"])
    cohorts = drawn.apply(lambda part: str(sorted(zip(part["round"], part["client"], strict=True))))
    assert cohorts.groupby("config.seed").nunique().eq(1).all()


def test_a_cell_on_other_data_is_named(tmp_path: Path, started: list[str]) -> None:
    file = write_sweep(tmp_path, grid={"algorithm.name": ["fedavg"], "data.split_seed": [0, 1]})
    said: list[str] = []
    assert verb.run_sweep(file, tmp_path / "out", RANKS, said.append)
    assert started == ["fedavg_split_seed0", "fedavg_split_seed1"]
    found = [line for line in said if "not to be compared" in line]
    assert found == [f"not to be compared: {started[1]} has another split of validation than {started[0]} (seed 0)"]
    with pytest.raises(UserError, match="another split of validation"):
        comparisons([tmp_path / "out"], Wish())


def test_what_is_done_is_not_run_again(swept: tuple[Path, Path], started: list[str]) -> None:
    file, out = swept
    before = (out / "sweep.json").read_bytes()
    said: list[str] = []
    assert verb.run_sweep(file, out, RANKS, said.append)
    assert started == []
    assert said[-1] == "6 of 6 cells done"
    assert (out / "sweep.json").read_bytes() == before
    rows = verb.status(file, out)
    assert rows[0] == ("0 fedavg_seed3", "finished")
    assert rows[-1] == ("", "6 of 6 cells done")


def test_new_cells_are_run_and_changed_ones_refused(swept: tuple[Path, Path], started: list[str]) -> None:
    file, out = swept
    more = write_sweep(file.parent / "more", grid={**GRID, "seed": [3, 4, 5], "algorithm.name": ["deer"]})
    assert dict(verb.status(more, out))["2 deer_seed5"] == "missing"
    assert verb.run_sweep(more, out, RANKS, str)
    assert started == ["deer_seed5"]
    other = write_sweep(file.parent / "other", grid=GRID, list=[{"rounds": 3, "name": ""}])
    with pytest.raises(UserError, match="cell fedavg_seed3: rounds: found 3; expected 2"):
        verb.run_sweep(other, out, RANKS, str)
    assert verb.run_sweep(file, out, RANKS, str)  # sweep.json has the first file's cells again


def test_the_table_of_a_sweep(swept: tuple[Path, Path]) -> None:
    wish = Wish()
    results, (table,) = comparisons([swept[1]], wish)
    assert table.numbers["contender"].tolist() == METHODS
    assert table.scores.shape == (2, 3)
    steps = table.numbers.set_index("contender")["client_steps"]
    assert steps["deer"] == 2 * steps["fedavg"] == 2 * steps["fedprox"] > 0
    text = written([table], "md", wish)
    assert "| fedprox | 2 |" in text
    assert "2 seeds: too few" in text
    assert len(results.rounds) == 12


def test_steps_are_those_that_clients_take(swept: tuple[Path, Path]) -> None:
    found = load(swept[1])
    own = found.clients[found.clients["run"] == "fedavg_seed3"]
    expected = (-(own["n"] // -8)).groupby(own["round"]).sum()
    counted = found.rounds[found.rounds["run"] == "fedavg_seed3"].set_index("round")["client_steps"]
    pd.testing.assert_series_equal(counted, expected, check_names=False)


def test_only_an_empty_folder_or_a_sweeps_is_taken(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, grid=GRID)
    with pytest.raises(UserError, match=r"files, but no sweep.json"):
        verb.run_sweep(file, tmp_path, RANKS, str)


def test_ranks_are_not_started_by_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="2 ranks; expected one process"):
        verb.run_sweep(write_sweep(tmp_path, grid=GRID), tmp_path / "out", RANKS, str)


def test_a_cell_by_its_number(swept: tuple[Path, Path]) -> None:
    config, folder = verb.cell_at(*swept, 1)
    assert (config.name, folder.name, config.seed) == ("fedavg_seed4", "fedavg_seed4", 4)
    for number in (-1, 6):
        with pytest.raises(UserError, match="expected 0 to 5"):
            verb.cell_at(*swept, number)
