"""A run folder whose files were changed, and one that cannot be written any more: a line, and nothing is lost."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim import server
from fedsim.comm.group import open_group
from fedsim.config.experiment import Config
from fedsim.configure import load_config
from fedsim.errors import UserError
from fedsim.machine.sealed import write_record
from fedsim.storage.checkpoint import Checkpoints
from fedsim.storage.rows import Table
from tests.distributed.runs import ROOT, environment, results, same_log, write_config

NUM_FLIPS = 500
LOGS = ("metrics.jsonl", "clients.jsonl", "timings.jsonl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A finished run of two rounds whose clients keep something."""
    folder = tmp_path_factory.mktemp("whole")
    config = load_config(write_config(folder), ["algorithm={name: fedrep}", "rounds=2"])
    server.run(config, folder / "run", resume=False)
    return config, folder / "run"


@pytest.fixture
def copy(whole: tuple[Config, Path], tmp_path: Path) -> tuple[Config, Path]:
    return whole[0], Path(shutil.copytree(whole[1], tmp_path / "run"))


def flips(path: Path) -> list[tuple[int, int]]:
    """Places of bits in a file, among them its first and last."""
    stream, size = random.Random(path.name), path.stat().st_size
    drawn = [(stream.randrange(size), stream.randrange(8)) for _ in range(NUM_FLIPS - 2)]
    return [(0, 0), (size - 1, 7), *drawn]


@pytest.mark.parametrize("name", ["server.safetensors", "clients-00000.safetensors", "state.json", *LOGS])
def test_no_flipped_bit_is_taken(name: str, copy: tuple[Config, Path]) -> None:
    run = copy[1]
    checkpoints = Checkpoints(run / "checkpoints", load_config(run / "config.yaml"), open_group())

    def read() -> None:
        """As a start does that goes on from there."""
        saved = checkpoints.load()
        assert saved is not None
        for log in LOGS:
            Table(run / log).cut(saved.state.round, saved.log[log.removesuffix(".jsonl")])

    read()
    path = run / name if name in LOGS else run / "checkpoints" / "round-000002" / name
    content = path.read_bytes()
    for byte, bit in flips(path):
        changed = bytearray(content)
        changed[byte] ^= 1 << bit
        path.write_bytes(changed)
        with pytest.raises(UserError) as caught:
            read()
        assert str(run) in str(caught.value), (byte, bit)
        assert "\n" not in str(caught.value), (byte, bit)


def test_another_round_under_a_checkpoints_name_is_refused(copy: tuple[Config, Path]) -> None:
    """A round was trained twice after an edit of one number."""
    config, run = copy
    path = run / "checkpoints" / "round-000002" / "state.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "round": 1}))
    with pytest.raises(UserError, match=r"state\.json: found a record that was changed or damaged"):
        server.run(config, run, resume=True)
    write_record(path, {key: value for key, value in record.items() if key != "record_sha256"} | {"round": 1})
    with pytest.raises(UserError, match=r"state\.json: found round 1; expected the round of its folder, round-000002"):
        server.run(config, run, resume=True)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("metrics.jsonl", lambda lines: lines[1:], r"metrics\.jsonl line 1: found round 2 after round 0"),
        ("metrics.jsonl", lambda lines: lines[:1], r"metrics\.jsonl: found nothing after round 1; expected the 2 rows"),
        ("metrics.jsonl", lambda lines: [*lines, lines[1]], r"metrics\.jsonl line 3: found round 2 twice"),
        ("clients.jsonl", lambda lines: [lines[0], *lines], r"clients\.jsonl line 2: found round 1, .* twice"),
        ("clients.jsonl", lambda lines: lines[:3] + lines[4:], r"clients\.jsonl: found 27 rows, not all as they were"),
        ("timings.jsonl", lambda _: [], r"timings\.jsonl: found no rows; expected the 2 rows"),
    ],
)
def test_rows_that_a_checkpoint_covers_must_be_there_once(
    name: str, change: Callable[[list[str]], list[str]], message: str, copy: tuple[Config, Path]
) -> None:
    config, run = copy
    path = run / name
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    before = path.read_bytes()
    with pytest.raises(UserError, match=message):
        server.run(config, run, resume=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"earlier_starts": 3}', "[" * 100_000, '{"data_files": [2]}'])
def test_a_damaged_environment_is_one_line(content: str, copy: tuple[Config, Path]) -> None:
    config, run = copy
    (run / "environment.json").write_text(content)
    with pytest.raises(UserError, match=r"environment\.json: found no readable JSON object .*; expected the facts"):
        server.run(config, run, resume=True)


def full_after(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], int]:
    """Let the disk be full from so many writes to it on; what is returned says how many there were."""
    real, count = os.fsync, 0

    def sync(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    return lambda: count


@pytest.mark.slow
def test_whenever_the_disk_is_full_it_is_one_line_and_the_run_goes_on_later(
    whole: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, complete = whole
    with monkeypatch.context() as patch:
        count = full_after(patch, 10**6)
        server.run(config, tmp_path / "counted", resume=False)
        number = count()
    assert number > 20
    for last in range(0, number, 8):
        run = tmp_path / str(last)
        with monkeypatch.context() as patch:
            full_after(patch, last)
            with pytest.raises(UserError, match="No space left on device") as caught:
                server.run(config, run, resume=False)
        assert str(run) in str(caught.value)
        assert "\n" not in str(caught.value)
        server.run(config, run, resume=True)
        assert results(run) == results(complete)
        assert same_log(run, complete)


def test_a_folder_that_is_deleted_meanwhile_is_one_line(
    whole: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = whole[0], tmp_path / "run"
    train = server.run_round

    def run_round(*arguments: Any) -> Any:
        shutil.rmtree(run)
        return train(*arguments)

    monkeypatch.setattr(server, "run_round", run_round)
    with pytest.raises(UserError, match="No such file or directory") as caught:
        server.run(config, run, resume=False)
    assert str(run) in str(caught.value)


def launched(redirection: str, *words: object) -> subprocess.CompletedProcess[str]:
    """launch.py with a standard output of the shell's making."""
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "launch.py", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "told"),
    [
        (">/dev/full", "standard output: No space left on device; the run goes on without it\n"),
        (">&-", ""),
    ],
)
def test_a_run_goes_on_without_its_standard_output(redirection: str, told: str, tmp_path: Path) -> None:
    done = launched(redirection, "run", write_config(tmp_path), "rounds=1", "--out", tmp_path / "run")
    assert (done.returncode, done.stderr) == (0, told)
    assert results(tmp_path / "run")["status"] == "finished"


def test_what_is_there_to_show_something_says_that_it_could_not() -> None:
    done = launched(">/dev/full", "list", "models")
    assert done.returncode == 2
    assert done.stderr == ("error: standard output: found No space left on device; expected room for what is shown\n")
