"""A run seen from its folder alone: at work, ended, lost; rows that are just being written."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from fedsim.errors import UserError
from fedsim.runfolder.lock import STILL_SECONDS, FolderLock
from fedsim.runfolder.messages import keep_message, last_messages
from fedsim.verbs import watch as verb
from fedsim.verbs.watch.looking import Look, Moment, Watcher
from fedsim.verbs.watch.tail import Tail
from fedsim.verbs.watch.view import best_row, curve, view

ROOT = Path(__file__).resolve().parents[3]
WORDS: dict[str, Any] = {
    "name": "a",
    "seed": 3,
    "rounds": 4,
    "algorithm": {"name": "deer"},
    "model": {"name": "packaged:vit_small_dino"},
    "data": {"name": "brain_mri"},
    "clients": {"count": 2},
}


def metrics_row(round: int, accuracy: float, loss: float | None = 0.5) -> dict[str, Any]:
    own = {"clients": 2, "mean": 0.25, "std": 0.125, "worst": 0.0625, "deciles": [0.5] * 9}
    measured = {"accuracy": accuracy, "loss": 1 - accuracy}
    return {
        "round": round,
        "train_loss": loss,
        "val": measured,
        "test": measured,
        "bytes_up": 1_000_000,
        "bytes_down": 3_000_000,
        "client_steps": 10,
        "diagnostics": {"clients": {"test": {"f1": {"before": own, "after": own, "drop": own}}}},
    }


def write_rows(folder: Path, *accuracies: float, **words: Any) -> Path:
    """A run of so many rounds, 10 seconds and two clients each."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(WORDS))
    for number, accuracy in enumerate(accuracies, start=1):
        clients = [
            {"round": number, "phase": "b", "client": client, "train_loss": number + client} for client in (0, 1)
        ]
        append(folder / "metrics.jsonl", metrics_row(number, accuracy, **words))
        append(folder / "clients.jsonl", *clients)
        append(folder / "timings.jsonl", {"round": number, "phases": [], "seconds": 10.0})
    return folder


def append(path: Path, *rows: dict[str, Any], end: str = "\n") -> None:
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + end for row in rows))


def finish(folder: Path, rounds: int) -> None:
    (folder / "results.json").write_text(json.dumps({"status": "finished", "rounds": rounds, "best_round": 2}))


def seen(look: Look) -> str:
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(view(look, console))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    return text


def test_a_run_at_work(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "a", 0.5, 0.75, 0.625)
    lock = FolderLock(folder, print)
    keep_message(folder, "data: 3 images are there twice, as amended by hand")
    look = Watcher(folder).look()
    lock.release()
    assert not look.has_ended
    assert not look.is_lost
    assert look.seconds_left == pytest.approx(10.0, abs=1.0)
    text = seen(look)
    assert f"at work: process {os.getpid()} on " in text
    assert "3 of 4 rounds, 10.0 s each, 0:00:" in text
    assert ["accuracy", "0.6250", "0.6250", "0.7500", "0.7500"] in [line.split() for line in text.splitlines()]
    for part in (
        "loss 3.0000 to 4.0000, median 3.5000",
        "mean 0.2500, deviation 0.1250, worst 0.0625",
        "as amended by hand",
    ):
        assert part in text
    assert "1.0 MB up, 3.0 MB down a round; 3.0 MB up, 9.0 MB down so far" in text
    assert "warning" not in text
    hidden = dict.fromkeys(("train_loss", "bytes_up", "bytes_down", "client_steps"))
    append(folder / "metrics.jsonl", metrics_row(4, 0.5) | hidden)
    assert "traffic" not in seen(Watcher(folder).look())


def test_how_a_run_has_ended(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "a", 0.5, 0.75)
    finish(folder, 2)
    assert Watcher(folder).look().has_ended
    assert "finished after round 2, best round 2" in seen(Watcher(folder).look())
    (folder / "results.json").unlink()
    assert "over before its end: killed, or its machine gone; --resume goes on" in seen(Watcher(folder).look())
    keep_message(folder, "ended by UserError: disk: no room")
    look = Watcher(folder).look()
    assert look.is_lost
    assert "over before its end: UserError: disk: no room" in seen(look)


def test_a_silent_run_is_lost(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "a", 0.5)
    holder = {"host": "node2", "pid": 5, "job": "8", "boot": "another"}
    (folder / "lock").write_text(json.dumps(holder) + "\n")
    watcher = Watcher(folder)
    assert not watcher.look().is_lost
    long_ago = time.time() - STILL_SECONDS - 5
    os.utime(folder / "lock", (long_ago, long_ago))
    look = Watcher(folder).look()
    assert look.is_lost
    assert "no sign of life, killed or suspended: process 5 on node2 (SLURM job 8)" in seen(look)
    (folder / "lock").write_text(json.dumps(holder)[:20])  # somebody is just writing it
    assert not Watcher(folder).look().is_lost
    os.utime(folder / "lock", (long_ago, long_ago))  # nobody will
    assert Watcher(folder).look().is_lost


def test_the_best_round_is_by_the_metric_that_the_task_has_first(tmp_path: Path) -> None:
    """Findings decide by their AUROC, whatever order a person sees metrics in."""
    folder = write_rows(tmp_path / "a")
    for number, score in enumerate((0.25, 0.75, 0.5), start=1):
        found = {"auroc": score, "accuracy": 1 - score}
        append(folder / "metrics.jsonl", {**metrics_row(number, 0.5), "val": found, "test": found})
    look = Watcher(folder).look()
    assert best_row(look, look.rounds)["round"] == 2


def test_a_clock_that_differs_does_not_count_once_a_change_is_seen() -> None:
    moment, now = Moment(), time.time()
    assert moment.since(now - 500) == pytest.approx(500, abs=5)
    assert moment.since(now - 490) < 5
    assert Moment().since(now + 500) < 5


def test_rows_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    tail = Tail(path)
    assert tail.look() == []
    path.write_text('{"round": 1}\n{"rou')
    assert tail.look() == [{"round": 1}]
    with path.open("a") as file:
        file.write('nd": 2}\n')
    assert tail.look() == [{"round": 1}, {"round": 2}]
    with path.open("ab") as file:
        file.write(bytes(12) + b"\n")  # longer already, and not yet filled
    assert len(tail.look()) == 2
    assert "t.jsonl: no row after round 2" in tail.trouble
    path.write_bytes(b'{"round": 1}\n{"round": 2}\n{"round": 3}\n')
    assert tail.look()[-1] == {"round": 3}
    assert not tail.trouble
    cut = tmp_path / "new"
    cut.write_text('{"round": 1, "again": true}\n')
    cut.replace(path)  # as a resumed run cuts its table
    assert tail.look() == [{"round": 1, "again": True}]
    path.unlink()
    assert tail.look() == []


def test_of_a_large_table_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    append(path, *({"round": 1 + place // 10, "client": place} for place in range(100)))
    rows = Tail(path, most_bytes=500).of_last_round()
    assert [row["client"] for row in rows] == list(range(90, 100))
    tail = Tail(path, most_bytes=50)
    assert [row["client"] for row in tail.of_last_round()] == [99]
    append(path, {"round": 11, "client": 7})
    assert tail.of_last_round() == [{"round": 11, "client": 7}]


def test_warnings(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "a", 0.5, 0.25, loss=None)
    lost = {"round": 2, "client": 5, "train_loss": 1.0, "lost": True}
    append(folder / "clients.jsonl", {"phase": "b", **lost}, {"phase": "a", **lost})
    lock = FolderLock(folder, print)
    long_ago = time.time() - 100
    os.utime(folder / "timings.jsonl", (long_ago, long_ago))
    text = " ".join(seen(Watcher(folder).look()).split())
    lock.release()
    assert "round 2: the training loss is no number" in text
    assert "round 2: messages of 1 of the clients were lost" in text
    assert "round 3 takes more than 5 times the usual" in text


def test_it_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hiccup of the file system costs nothing; a folder that goes away is told."""
    monkeypatch.setattr(verb, "LOOK_SECONDS", 0.01)
    folder = write_rows(tmp_path / "a", 0.5)
    lock, shown = FolderLock(folder, print), []
    watcher = Watcher(folder)
    fine, calls = watcher.look, iter(range(1000))

    def look() -> Look:
        call = next(calls)
        if call == 2:
            raise OSError(116, "Stale file handle")
        if call == 4:
            append(folder / "metrics.jsonl", metrics_row(2, 0.75))
            finish(folder, 2)
            lock.release()
        return fine()

    monkeypatch.setattr(watcher, "look", look)
    last = verb.follow(watcher, shown.append)
    assert last.has_ended
    assert [one.round for one in shown] == [1, 1, 1, 1, 2]
    assert shown[2].troubles == ["cannot be read at this moment: Stale file handle"]


def test_a_run_that_is_lost_is_given_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(verb, "STILL_SECONDS", 0.2)
    folder, shown = write_rows(tmp_path / "a", 0.5), []
    assert verb.follow(Watcher(folder), shown.append).is_lost
    assert len(shown) > 3
    again = threading.Timer(0.05, finish, (folder, 1))
    again.start()
    assert verb.follow(Watcher(folder), shown.append).has_ended
    again.join()


def test_the_command_needs_no_torch_and_goes_through_a_pipe(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "a", 0.5, 0.75)
    finish(folder, 2)
    program = (
        "import atexit, sys; from fedsim import launch; sys.argv = ['fedsim', 'watch', *sys.argv[1:]]\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        "launch.main()"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    done = run(str(folder), "--once")
    assert (done.returncode, done.stderr) == (0, "False\n")
    assert "finished after round 2" in done.stdout
    assert "\x1b" not in done.stdout
    (folder / "results.json").unlink()
    assert run(str(folder), "--once").returncode == 1
    for words, said in (((str(folder),), "no terminal"), ((str(tmp_path / "b"), "--once"), "no folder")):
        done = run(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert said in done.stderr


def test_a_distillations_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("submodel: {}\n")
    with pytest.raises(UserError, match="found no rounds; expected the config of a run"):
        Watcher(tmp_path)


def test_messages_are_whole_lines(tmp_path: Path) -> None:
    assert last_messages(tmp_path) == []
    keep_message(tmp_path, "one\ntwo\x1b[2J")
    with (tmp_path / "messages.log").open("a") as file:
        file.write("torn")
    (line,) = last_messages(tmp_path)
    assert line.endswith(" one two\\x1b[2J")


def test_a_curve_goes_from_the_lowest_to_the_highest() -> None:
    assert curve([0.0, None, 0.5, 1.0]) == "  ▁▅█"
    assert len(curve(list(map(float, range(1000))))) <= 34
    assert curve([1.0]) == ""
    assert curve([1.0, 1.0]) == "  ▁▁"
