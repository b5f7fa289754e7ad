"""The run folder: rows that read back equal, exact truncation, claims, what is shown."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from fedsim.comm.group import Group
from fedsim.config.experiment import Config
from fedsim.configure import load_config
from fedsim.data import Dataset
from fedsim.data.digests import describe_files
from fedsim.errors import UserError
from fedsim.machine.files import write_atomic, write_json
from fedsim.models.tower import Encoder
from fedsim.runfolder.runlog import RunLog, flatten
from fedsim.storage.rows import Table, read_rows
from tests.helpers import make_dataset

CONFIG = Config.model_validate(
    {
        "name": "small",
        "rounds": 3,
        "model": {"name": "packaged:vit_small_dino"},
        "data": {"name": "digits"},
        "clients": {"count": 2, "partition": {"name": "iid"}},
        "train": {"lr": 0.1},
    }
)
METRICS = {"loss": 0.1 + 0.2, "accuracy": 2 / 3, "auroc": math.nan}


class Record:
    """The rows of one round."""

    def __init__(self, round: int) -> None:
        drift = {"train": {"client_drift": 1e-17}}
        self.row = {
            "round": round,
            "train_loss": 1 / 3,
            "val": METRICS,
            "test": METRICS,
            "diagnostics": drift,
        }
        self.row |= {"bytes_up": 1000, "bytes_down": 3000}
        self.client_rows = [{"round": round, "client": client, "train_loss": 0.7**31} for client in range(2)]
        self.timing: dict[str, Any] = {"round": round, "phases": []}

    def close(self) -> None:
        self.timing["seconds"] = 1.5


def group(rank: int = 0) -> Group:
    facts = {"rank": rank, "num_ranks": 2, "is_server": rank == 0, "backend": "gloo", "launcher": "torchrun"}
    words = {"decide": lambda act: act() if rank == 0 else None, "broadcast": lambda value: value}
    return cast(Group, SimpleNamespace(**facts, **words, device=torch.device("cpu")))


def open_log(folder: Path, *, resume: bool = False, config: Config = CONFIG) -> RunLog:
    return RunLog(folder, config, group(), resume)


def run_rounds(log: RunLog, *rounds: int) -> None:
    for round in rounds:
        log.start_round(round)
        log.progress("phase train")
        log.end_round(Record(round))


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "small"
    results = {"status": "finished", "rounds": 3, "best_round": 2, "val": METRICS, "test": METRICS}
    with open_log(folder) as log:
        run_rounds(log, 1, 2, 3)
        log.finish(results)

    assert load_config(folder / "config.yaml") == CONFIG
    facts = json.loads((folder / "environment.json").read_text())
    assert (facts["ranks"], facts["backend"], facts["device"]) == (2, "gloo", "cpu")
    assert facts["versions"]["torch"]
    assert facts["hardware"]["cores"] >= 1
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert rows[0]["val"] == METRICS | {"auroc": None}
    assert rows[0]["diagnostics"]["train"]["client_drift"] == 1e-17
    assert len(read_rows(folder / "clients.jsonl")) == 6
    assert all("seconds" not in row for row in rows)
    assert read_rows(folder / "timings.jsonl")[0]["seconds"] == 1.5
    assert json.loads((folder / "results.json").read_text())["val"]["auroc"] is None
    assert list((folder / "tensorboard").iterdir())

    lines = capsys.readouterr().out
    assert "\x1b" not in lines  # no colours and no bar in a file
    assert "round 2/3  train_loss 0.3333  val_loss 0.3000  val_accuracy 0.6667  val_auroc -  seconds 1.50" in lines
    assert sum("round " in line and "train_loss" in line for line in lines.splitlines()) == 3
    for word in ("validation", "test", "accuracy", "AUROC"):
        assert word in lines
    assert "Dice" not in lines  # it was not measured
    assert "per round: 1.50 seconds, 1,000 bytes up, 3,000 bytes down" in lines
    assert f"run folder: {folder}" in lines


def test_other_ranks_write_and_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path / "out", CONFIG, group(rank=1), False)
    log.truncate(0)
    log.message("hello")
    run_rounds(log, 1)
    log.finish({"status": "finished"})
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr() == ("", "")


def test_resume_drops_later_rows_and_keeps_the_bytes_of_the_others(tmp_path: Path) -> None:
    with open_log(tmp_path / "a") as log:
        run_rounds(log, 1, 2, 3)
    with open_log(tmp_path / "b") as log:
        run_rounds(log, 1, 2)
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "train_')  # killed while writing
    with open_log(tmp_path / "b", resume=True) as log:
        log.truncate(1)
        run_rounds(log, 2, 3)
    for name in ("metrics.jsonl", "clients.jsonl", "timings.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    facts = json.loads((tmp_path / "b" / "environment.json").read_text())
    assert len(facts["earlier_starts"]) == 1


def test_data_files_are_kept_and_a_run_goes_on_with_the_same_content_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, encoder = tmp_path / "set" / "a.tsv", Encoder(nn.Identity(), 3, (0.0,) * 3, (1.0,) * 3, 14)
    file.parent.mkdir()

    def dataset(content: str) -> Dataset:
        file.write_text(content)
        return replace(make_dataset([4])[0], files=describe_files([file]), remarks=("not as published",))

    with open_log(tmp_path / "run") as log:
        log.record_inputs(dataset("old"), encoder)
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["data_files"]["each"] == {"a.tsv": hashlib.sha256(b"old").hexdigest()}
    assert "data: not as published\n" in capsys.readouterr().out
    with open_log(tmp_path / "run", resume=True) as log:
        log.record_inputs(dataset("old"), encoder)
    for _ in range(2):  # a start that was refused leaves what the next one is compared with
        with (
            pytest.raises(UserError, match=r"--resume: data made up: found 1 files, sha256 .*; expected 1 files, sha"),
            open_log(tmp_path / "run", resume=True) as log,
        ):
            log.record_inputs(dataset("new"), encoder)
        assert log._lock is not None
        log._lock.release()  # one of two ranks leaves that to the process's end


def test_a_used_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    with open_log(tmp_path / "a") as log:
        run_rounds(log, 1)
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir() if path.is_file()}
    with pytest.raises(UserError, match=r"a: found a folder that is in use; expected --resume .* or another --out"):
        open_log(tmp_path / "a")
    assert before == {path: path.read_bytes() for path in before}


def test_resume_of_nothing_starts_fresh(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with open_log(tmp_path / name, resume=True):
            assert (tmp_path / name / "config.yaml").exists()


def test_resume_with_another_config_names_the_key(tmp_path: Path) -> None:
    with open_log(tmp_path / "a"):
        pass
    train = CONFIG.train.model_copy(update={"lr": 0.2})
    with pytest.raises(UserError, match=r"^--resume: train\.lr: found 0\.2; expected 0\.1 as in .*config\.yaml$"):
        open_log(tmp_path / "a", resume=True, config=CONFIG.model_copy(update={"train": train}))


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"x")
    for resume in (False, True):
        with pytest.raises(UserError, match="another --out"):
            open_log(tmp_path, resume=resume)
    with pytest.raises(UserError, match="a folder that can be written"):
        open_log(tmp_path / "photo.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png"]


def test_rows_read_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    table = Table(path)
    values = [0.1 + 0.2, 1e-310, 5e-324, 1.7976931348623157e308, -0.0, 2**60, "ä\n\u2028", None, [1, [2.5]]]
    table.append([{"round": 1, "values": values}])
    table.append([{"round": 2, "values": [math.inf, -math.inf, math.nan, {"x": math.nan}]}])
    table.append([])
    first, second = read_rows(path)
    assert first["values"] == values
    assert math.copysign(1, first["values"][4]) == -1
    assert second["values"] == [None, None, None, {"x": None}]


def test_damaged_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for word in ("nonsense", "[1]", '{"round": NaN}', '{"round": 1.0}', '{"round": true}', "[" * 100_000):
        path.write_text('{"round": 1}\n' + word + '\n{"round": 3}\n')
        with pytest.raises(UserError, match=r"rows\.jsonl line 2: found .*; expected a JSON row with its round"):
            Table(path).cut(1)
        assert path.read_text().count("\n") == 3


def test_truncate_without_a_file(tmp_path: Path) -> None:
    Table(tmp_path / "none.jsonl").cut(0)
    assert list(tmp_path.iterdir()) == []


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, 2: {"c": [3]}}, "d": {}, "e": None}, "/") == {
        "a/b": 1,
        "a/2/c": [3],
        "d": {},
        "e": None,
    }


def test_write_atomic_replaces_whole_files_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": [1.5, math.nan]})
    assert json.loads(path.read_text()) == {"a": [1.5, None]}

    def fail(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, b"half")
    assert json.loads(path.read_text()) == {"a": [1.5, None]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]
