"""Settings that a sweep chooses by trials of tiny runs, in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsim import server
from fedsim.comm.exact import DIVERGED
from fedsim.config.experiment import Config
from fedsim.errors import UserError
from fedsim.results import load
from fedsim.results.comparing import Wish
from fedsim.verbs import sweep as verb
from fedsim.verbs.compare import comparisons
from fedsim.verbs.sweep_plan import Cell, Plan
from tests.unit.verbs.test_sweep import RANKS, write_sweep


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
