"""Sweeps of tiny runs, in this process; ``tests/distributed/test_sweep.py`` has them as they are started."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from fedsim import server
from fedsim.comm.exact import DIVERGED
from fedsim.config.experiment import Config
from fedsim.errors import UserError
from fedsim.results import load
from fedsim.results.comparing import Wish
from fedsim.results.likeness import unlike
from fedsim.verbs import sweep as verb
from fedsim.verbs.compare import comparisons, written
from fedsim.verbs.sweep_plan import Cell, Plan
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


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cells run in this process; the names of those that were started."""
    names: list[str] = []

    def run_here(cell: Cell, ranks: verb.Ranks) -> int:
        del ranks
        names.append(cell.name)
        cell.log.parent.mkdir(parents=True, exist_ok=True)
        cell.log.touch()
        server.run(cell.config, cell.folder, resume=True)
        return 0

    monkeypatch.setattr(verb, "run_cell", run_here)
    return names


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


def test_settings_are_chosen_by_validation(tmp_path: Path, started: list[str]) -> None:
    tune = {"seeds": [7], "grid": {"train.lr": [1e-6, 0.1]}}
    file = write_sweep(tmp_path, grid={"algorithm.name": ["fedavg"], "seed": [3]}, tune=tune)
    assert verb.status(file, tmp_path / "out")[-2] == ("2 fedavg_seed3", "waits for its trials")
    with pytest.raises(UserError, match="whose settings are not chosen"):
        verb.cell_at(file, tmp_path / "out", 2)
    assert verb.run_sweep(file, tmp_path / "out", RANKS, str)
    assert len(started) == 3
    values = [json.loads((tmp_path / "out" / "trials" / name / "results.json").read_text()) for name in started[:2]]
    scores = [one["val"]["accuracy"] for one in values]
    chosen = json.loads((tmp_path / "out" / "sweep.json").read_text())["chosen"]
    assert chosen == {"fedavg": {"train.lr": (1e-6, 0.1)[scores.index(max(scores))]}}
    config = yaml.safe_load((tmp_path / "out" / "fedavg_seed3" / "config.yaml").read_text())
    assert config["train"]["lr"] == chosen["fedavg"]["train.lr"]
    _, (table,) = comparisons([tmp_path / "out"], Wish())
    assert any("2 trial runs for each contender, 2 in all, 0 of them diverged" in note for note in table.notes)


def test_settings_are_chosen_by_the_clients_own_models(tmp_path: Path, started: list[str]) -> None:
    tune = {"seeds": [7], "grid": {"train.lr": [0.01, 0.1]}, "by": "clients.auroc"}
    words = {"grid": {"algorithm.name": ["local"], "seed": [3]}, "tune": tune}
    with pytest.raises(UserError, match=r"tune.by: found clients.auroc, but evaluate.clients: false in local_seed3"):
        verb.status(write_sweep(tmp_path / "unmeasured", **words), tmp_path / "out")
    words["list"] = [{"evaluate.clients": True}]
    file, out = write_sweep(tmp_path, **words), tmp_path / "out"
    assert verb.run_sweep(file, out, RANKS, str)
    trials = [out / "trials" / name for name in started[:2]]
    expected = load(*trials).runs["val.clients.auroc"].argmax()
    # Whoever's clients are best is chosen, whatever the server's model does.
    for best, score in ((expected, None), (1 - expected, 2.0), (expected, 3.0)):
        if score is not None:
            rows = [json.loads(line) for line in (trials[best] / "metrics.jsonl").read_text().splitlines()]
            rows[0]["diagnostics"]["clients"]["val"]["auroc"]["after"]["mean"] = score
            (trials[best] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (chosen,) = verb.choose(Plan(file, out)).values()
        assert chosen == {"train.lr": tune["grid"]["train.lr"][best]}
    file = write_sweep(tmp_path, **{**words, "tune": {**tune, "by": "clients.f2"}})
    with pytest.raises(UserError, match=r"tune.by: found clients.f2; expected clients.f1, clients.auroc"):
        verb.status(file, out)


def test_a_trial_that_diverged_is_the_worst_and_is_not_run_again(
    tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here: Callable[..., int] = verb.run_cell

    def run_or_diverge(cell: Cell, ranks: verb.Ranks) -> int:
        if cell.config.train.lr < 0.01:
            return run_here(cell, ranks)
        started.append(cell.name)
        cell.folder.mkdir(parents=True)
        cell.log.write_text(f"error: client 3: found nan; expected numbers ({DIVERGED})\n")
        return 2

    monkeypatch.setattr(verb, "run_cell", run_or_diverge)
    tune = {"seeds": [7], "grid": {"train.lr": [0.1, 0.001]}}
    file = write_sweep(tmp_path, grid={"algorithm.name": ["fedavg"], "seed": [3]}, tune=tune)
    assert verb.run_sweep(file, tmp_path / "out", RANKS, str)
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert record["chosen"] == {"fedavg": {"train.lr": 0.001}}
    assert record["diverged"] == ["fedavg_lr0.1_seed7"]
    started.clear()
    assert verb.run_sweep(file, tmp_path / "out", RANKS, str)
    assert started == []
    # Whoever has mended the base removes the run, and need not know of its log.
    (tmp_path / "out" / "trials" / "fedavg_lr0.1_seed7").rmdir()
    assert verb.run_sweep(file, tmp_path / "out", RANKS, str)
    assert started == ["fedavg_lr0.1_seed7"]


@pytest.mark.usefixtures("started")
def test_cells_with_a_setting_that_other_trials_do_not_choose_are_told(tmp_path: Path) -> None:
    tune = {"seeds": [7], "grid": {"train.lr": [0.001]}}
    words = {"grid": {"algorithm.name": ["fedavg"], "seed": [3]}, "tune": tune}
    file, out = write_sweep(tmp_path, **words), tmp_path / "out"
    assert verb.run_sweep(file, out, RANKS, str)
    (fine,) = comparisons([out], Wish())[1]
    assert "fedavg: train.lr=0.001" in fine.notes
    assert not any("not chosen" in note for note in fine.notes)
    file = write_sweep(tmp_path, **{**words, "tune": {**tune, "grid": {"train.lr": [0.05]}}})
    with pytest.raises(UserError, match=r"cell fedavg_seed3: train.lr: found 0.05; expected 0.001"):
        verb.run_sweep(file, out, RANKS, str)
    with pytest.raises(UserError, match=r"cell fedavg_seed3: train.lr: found 0.05; expected 0.001"):
        verb.cell_at(file, out, 0)
    (stale,) = comparisons([out], Wish())[1]
    assert "settings that the present trials have not chosen: fedavg_seed3" in stale.notes
    assert not any("train.lr" in note for note in stale.notes)
    record = json.loads((out / "sweep.json").read_text())
    (out / "sweep.json").write_text(json.dumps(record | {"chosen": {"fedavg": {"train.lr": 0.05}}}))
    (stale,) = comparisons([out], Wish())[1]
    assert "settings that the present trials have not chosen: fedavg_seed3" in stale.notes


def test_two_trials_of_one_name_are_refused(tmp_path: Path) -> None:
    tune = {"seeds": [7], "grid": {"model.name": ["timm:a/b", "timm:a b"]}}
    file = write_sweep(tmp_path, grid={"algorithm.name": ["fedavg"], "seed": [3]}, tune=tune)
    with pytest.raises(UserError, match="tune: found two trials named fedavg_timm-a-b_seed7"):
        verb.status(file, tmp_path / "out")


def test_a_contender_of_which_all_trials_diverged_holds_nobody_up(
    tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here: Callable[..., int] = verb.run_cell

    def run_or_diverge(cell: Cell, ranks: verb.Ranks) -> int:
        if cell.config.algorithm.name == "fedavg":
            return run_here(cell, ranks)
        cell.folder.mkdir(parents=True)
        cell.log.write_text(f"error: client 3: found nan; expected numbers ({DIVERGED})\n")
        return 2

    monkeypatch.setattr(verb, "run_cell", run_or_diverge)
    tune = {"seeds": [7], "grid": {"train.lr": [0.001]}}
    file = write_sweep(tmp_path, grid={"algorithm.name": ["fedprox", "fedavg"], "seed": [3]}, tune=tune)
    said: list[str] = []
    assert not verb.run_sweep(file, tmp_path / "out", RANKS, said.append)
    assert "fedprox: no setting that did not diverge, so none of its cells; tune needs other values" in said
    assert said[-1] == "1 of 2 cells done, 1 wait for their trials"
    assert started[-1] == "fedavg_seed3"
    assert dict(verb.status(file, tmp_path / "out"))["3 fedavg_seed3"] == "finished"


def test_a_trial_of_an_array_that_diverged_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = server.run

    def run_or_diverge(config: Config, out: Path, resume: bool) -> dict[str, Any]:
        if config.train.lr < 0.01:
            return run(config, out, resume)
        out.mkdir(parents=True)
        raise UserError("client 3", "nan", f"numbers ({DIVERGED})")

    monkeypatch.setattr(server, "run", run_or_diverge)
    tune = {"seeds": [7], "grid": {"train.lr": [0.1, 0.001]}}
    file = write_sweep(tmp_path, grid={"algorithm.name": ["fedavg"], "seed": [3]}, tune=tune)
    with pytest.raises(UserError, match="client 3"):
        verb.run_at(file, tmp_path / "out", 0)
    verb.run_at(file, tmp_path / "out", 1)
    assert dict(verb.status(file, tmp_path / "out"))["0 trials/fedavg_lr0.1_seed7"] == "diverged"
    verb.run_at(file, tmp_path / "out", 2)
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["chosen"] == {"fedavg": {"train.lr": 0.001}}


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
