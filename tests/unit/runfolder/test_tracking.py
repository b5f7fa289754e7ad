"""MLflow and Weights & Biases hold the numbers of metrics.jsonl, each once, whatever ends a start."""

import contextlib
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedsim.config.experiment import Config
from fedsim.config.plain_yaml import flatten
from fedsim.errors import UserError
from fedsim.runfolder.runlog import RunLog
from fedsim.runfolder.tracking import id_of, open_trackers, tell
from fedsim.runfolder.tracking.mlflow_store import MLflow
from fedsim.runfolder.tracking.wandb_run import BEGINNING, BLOCK, HEADER, logs, read_log, records
from fedsim.storage.rows import Table, read_rows

ROOT = Path(__file__).resolve().parents[3]
WORDS: dict[str, Any] = {
    "name": "small",
    "rounds": 4,
    "model": {"name": "packaged:vit_small_dino"},
    "data": {"name": "digits"},
    "clients": {"count": 2, "partition": {"name": "iid"}},
    "train": {"lr": 0.1},
}
#: A start that is killed after its third row, of which no checkpoint knows.
KILLED = """
import os, signal, sys
from pathlib import Path
from fedsim.runfolder.tracking import open_trackers, tell
from tests.unit.runfolder.test_tracking import config, metrics_row
folder = Path(sys.argv[1])
trackers = open_trackers(folder, config(folder))
for number in (1, 2, 3):
    tell(trackers, metrics_row(number), str)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
for tracker in trackers:
    tracker.close(failed=True)
"""


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with all its tables, which take MLflow seconds to make."""
    folder = tmp_path_factory.mktemp("mlflow")
    MLflow(f"sqlite:///{folder}/store.db", "nobody", "nobody", {}).close(failed=False)
    return folder / "store.db"


@pytest.fixture
def folder(tmp_path: Path, empty_store: Path) -> Path:
    """A run folder with a store beside it."""
    shutil.copy(empty_store, tmp_path)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def config(folder: Path) -> Config:
    return Config.model_validate(
        {**WORDS, "track": {"mlflow": f"sqlite:///{folder.parent}/store.db", "wandb": "offline"}}
    )


def metrics_row(round: int) -> dict[str, Any]:
    """Numbers of all kinds; nan and inf are null in metrics.jsonl."""
    scores = {"loss": 0.1 + 0.2 / round, "dice/a (left)": 2 / 3, "auroc": math.nan if round == 2 else 1e-17}
    return {
        "round": round,
        "train_loss": math.inf if round == 3 else 1 / (3 * round),
        "val": scores,
        "test": None,
        "bytes_up": 2**40 + round,
        "diagnostics": {"b": {"below_grid": 0.0, "layers": [1.0, 2.0]}},
    }


def expected(folder: Path) -> dict[int, dict[str, float]]:
    """The numbers of metrics.jsonl, as they are read back."""
    rows = [flatten(row, "/") for row in read_rows(folder / "metrics.jsonl")]
    return {
        row.pop("round"): {name: value for name, value in row.items() if isinstance(value, int | float)} for row in rows
    }


def in_mlflow(folder: Path) -> tuple[dict[int, dict[str, float]], Any]:
    """What the store holds, read by the library itself; AssertionError for a number that is there twice."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.parent}/store.db")
    experiment = client.get_experiment_by_name("fedsim").experiment_id
    (run,) = (run for run in client.search_runs([experiment]) if run.info.run_name == "small")
    found: dict[int, dict[str, float]] = {}
    for key in run.data.metrics:
        for one in client.get_metric_history(run.info.run_id, key):
            assert key not in found.setdefault(one.step, {}), f"{key} {one.step} twice"
            found[one.step][key] = one.value
    return found, run


def in_wandb(folder: Path) -> dict[int, dict[str, float]]:
    """What all starts' logs hold; AssertionError for a round that is in two."""
    found: dict[int, dict[str, float]] = {}
    for path in logs(folder, id_of(folder)):
        for step, numbers in read_log(path).items():
            assert step not in found
            found[step] = numbers
    return found


def named_for_mlflow(rows: Mapping[int, Mapping[str, float]]) -> dict[int, dict[str, float]]:
    return {
        step: {name.replace("(", "_").replace(")", "_"): v for name, v in own.items()} for step, own in rows.items()
    }


@pytest.mark.parametrize("end", ["error", "kill"])
def test_both_hold_the_numbers_of_metrics_jsonl_once_after_a_resume(folder: Path, end: str) -> None:
    alone = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    command = [sys.executable, "-c", KILLED, str(folder), end]
    ended = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, timeout=120)
    assert ended.returncode == (-9 if end == "kill" else 0), ended.stderr.decode()
    time.sleep(2)  # W&B names a start's folder by the second; no run comes back within the one that it was killed in
    table = Table(folder / "metrics.jsonl")
    table.append([metrics_row(1), metrics_row(2)])  # the rows of a checkpoint of round 2; round 3 is computed again
    trackers = open_trackers(folder, config(folder))
    for number in (3, 4):
        table.append([metrics_row(number)])
        tell(trackers, metrics_row(number), str)
    for tracker in trackers:
        tracker.close(failed=False)

    rows = expected(folder)
    assert list(rows) == [1, 2, 3, 4]
    assert (rows[1]["val/auroc"], rows[4]["bytes_up"]) == (1e-17, 2**40 + 4)
    assert "train_loss" not in rows[3]
    stored, run = in_mlflow(folder)
    assert stored == named_for_mlflow(rows)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "small")
    assert run.data.params["train.lr"] == "0.1"
    assert in_wandb(folder) == rows
    assert len(logs(folder, id_of(folder))) == 2


def test_rows_that_nobody_was_told_are_told_at_the_next_start(folder: Path) -> None:
    Table(folder / "metrics.jsonl").append([metrics_row(1), metrics_row(2)])
    for _ in range(2):  # the second start has nothing to tell
        for tracker in open_trackers(folder, config(folder)):
            tracker.close(failed=False)
        time.sleep(1)  # as above
    assert in_mlflow(folder)[0] == named_for_mlflow(expected(folder))
    assert in_wandb(folder) == expected(folder)


def test_a_run_is_tracked_and_no_bit_of_it_changes(folder: Path) -> None:
    from fedsim import server
    from tests.helpers import make_config

    plain = make_config(name="small", rounds=2, data={"max_train": 40}, evaluate={"clients": True})
    tracked = make_config(**{**plain.model_dump(mode="json"), "track": config(folder).track.model_dump()})
    results = [server.run(plain, folder.parent / "plain", False), server.run(tracked, folder, False)]
    assert results[0]["state_sha256"] == results[1]["state_sha256"]
    rows = expected(folder)
    assert expected(folder.parent / "plain") == rows
    assert in_mlflow(folder)[0] == in_wandb(folder) == rows
    assert len(rows[2]) > 10


@pytest.mark.parametrize("broken", [1, 3])
def test_a_store_that_fails_later_ends_no_run(folder: Path, broken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loses what it keeps numbers in before the second round, or how runs end after the last."""
    from fedsim import server
    from tests.helpers import make_config

    store = folder.parent / "store.db"
    table = "metrics" if broken == 1 else "runs"
    said: list[str] = []
    end_round = RunLog.end_round

    def rename(old: str, new: str) -> None:
        with contextlib.closing(sqlite3.connect(store)) as opened:
            opened.execute(f"ALTER TABLE {old} RENAME TO {new}")

    def breaking(log: RunLog, record: Any) -> None:
        end_round(log, record)
        if record.row["round"] == broken:
            rename(table, "elsewhere")

    monkeypatch.setattr(RunLog, "end_round", breaking)
    monkeypatch.setattr(RunLog, "message", lambda _, text: said.append(text))
    words = make_config(name="small", rounds=3, data={"max_train": 40}).model_dump(mode="json")
    settings = Config.model_validate({**words, "track": config(folder).track})
    results = server.run(settings, folder, False)
    assert results["status"] == "finished"
    assert in_wandb(folder) == expected(folder)
    told = [line for line in said if line.startswith("goes on without: track.mlflow, ")]
    assert len(told) == 1
    assert "--resume" in told[0]
    rename("elsewhere", table)
    time.sleep(1)  # as above
    assert server.run(settings, folder, True)["state_sha256"] == results["state_sha256"]
    stored, run = in_mlflow(folder)
    assert (stored, run.info.status) == (expected(folder), "FINISHED")


def test_a_log_that_is_torn_or_longer_than_a_block() -> None:
    """Records as LevelDB writes them, cut into blocks here by the rule that it has."""
    whole = [b"a" * 10, b"b" * (2 * BLOCK), b"c" * (BLOCK - 60), b"d"]
    content = bytearray(BEGINNING)
    for record in whole:
        rest, is_first = record, True
        while rest or is_first:
            if BLOCK - len(content) % BLOCK < HEADER.size:
                content += bytes(BLOCK - len(content) % BLOCK)
            piece = rest[: BLOCK - len(content) % BLOCK - HEADER.size]
            rest = rest[len(piece) :]
            kind = (1 if is_first else 4) if not rest else (2 if is_first else 3)
            content += HEADER.pack(0, len(piece), kind) + piece
            is_first = False
    assert list(records(bytes(content))) == whole
    assert list(records(bytes(content[:-1]))) == whole[:-1]
    assert list(records(b"")) == []


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_package_that_is_missing_is_one_line_and_nothing_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.runfolder.test_runlog import group

    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"track\.{name}: found .*{name}.*; expected its package: pip install {name}"):
        RunLog(tmp_path / "run", config(tmp_path / "run"), group(), False)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_none_is_one_line(tmp_path: Path) -> None:
    """MLflow itself refuses folders since version 3.17."""
    for uri in (f"file:{tmp_path}/mlruns", "what:ever", "sqlite:////proc/no/store.db"):
        words = Config.model_validate({**WORDS, "track": {"mlflow": uri}})
        with pytest.raises(UserError, match=r"track\.mlflow, .*; expected a store that answers"):
            open_trackers(tmp_path, words)


def test_nobody_is_called_whom_the_user_has_not_named(folder: Path) -> None:
    """Neither library sends what it does to its makers, and neither says a word."""
    program = (
        KILLED
        + """
from mlflow.telemetry.utils import is_telemetry_disabled
print(os.environ["MLFLOW_DISABLE_TELEMETRY"], os.environ["WANDB_ERROR_REPORTING"], is_telemetry_disabled())
"""
    )
    unset = ("CI", "PYTEST_CURRENT_TEST", "MLFLOW_DISABLE_TELEMETRY", "WANDB_ERROR_REPORTING", "WANDB_SERVICE")
    plain = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-c", program, str(folder), "end"]
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("true false True\n", "")


def test_tracking_nothing_is_refused_and_is_no_part_of_the_result() -> None:
    from fedsim.config.experiment import as_computed

    with pytest.raises(ValueError, match="neither mlflow nor wandb"):
        Config.model_validate({**WORDS, "track": {}})
    assert as_computed(config(Path("a/b"))) == Config.model_validate(WORDS)


def test_an_id_that_no_run_has_written_is_refused(tmp_path: Path) -> None:
    first = id_of(tmp_path)
    assert id_of(tmp_path) == first
    (tmp_path / "tracking_id").write_text("../x")
    with pytest.raises(UserError, match="tracking_id: found no letters and digits"):
        id_of(tmp_path)
