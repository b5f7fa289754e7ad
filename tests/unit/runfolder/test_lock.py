"""The lock of a run folder: one holder, however it ends, on one machine and on several."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsim.errors import UserError
from fedsim.runfolder import lock
from fedsim.runfolder.lock import LOCK_FILE, FolderLock

ROOT = Path(__file__).resolve().parents[3]
HOLDER = """
import sys, time
from pathlib import Path
from fedsim.runfolder.lock import FolderLock
held = FolderLock(Path(sys.argv[1]), print)
print("held", flush=True)
time.sleep(600)
"""


def never(text: str) -> None:
    pytest.fail(f"waited: {text}")


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of ``tmp_path`` for SLURM's job 77."""
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(
        words, cwd=ROOT, env=os.environ | {"SLURM_JOB_ID": "77"}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def write_record(folder: Path, seconds_ago: float = 0.0, **changes: str) -> None:
    """Leave what a holder on another machine leaves that was killed."""
    record = {"host": "node2", "pid": 5, "job": "8", "boot": "another"} | changes
    (folder / LOCK_FILE).write_text(json.dumps(record) + "\n")
    moment = time.time() - seconds_ago
    os.utime(folder / LOCK_FILE, (moment, moment))


def test_one_at_a_time_and_nothing_is_left(tmp_path: Path) -> None:
    first = FolderLock(tmp_path, never)
    with pytest.raises(UserError, match=rf"found process {os.getpid()} on \S+ at work in it; expected one run at a"):
        FolderLock(tmp_path, never)
    first.require()
    first.release()
    assert list(tmp_path.iterdir()) == []
    FolderLock(tmp_path, never).release()


@pytest.mark.parametrize("stop", [False, True])
def test_another_process_is_named_even_while_it_is_suspended(
    holder: subprocess.Popen[str], tmp_path: Path, stop: bool
) -> None:
    if stop:
        holder.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match=rf"process {holder.pid} on \S+ \(SLURM job 77\) at work in it"):
        FolderLock(tmp_path, never)


def test_a_killed_process_holds_nothing(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK_FILE).exists()
    FolderLock(tmp_path, never).release()
    assert list(tmp_path.iterdir()) == []


def test_what_a_holder_starts_does_not_hold(tmp_path: Path) -> None:
    held = FolderLock(tmp_path, never)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    held._released.set()
    held._toucher.join()
    held._file.close()  # as the kernel does at the holder's end
    FolderLock(tmp_path, never).release()
    child.kill()
    child.wait()


def test_another_machine_s_holder_that_was_silent_for_long_is_gone(tmp_path: Path) -> None:
    write_record(tmp_path, seconds_ago=lock.STILL_SECONDS + 1)
    FolderLock(tmp_path, never).release()


@pytest.mark.parametrize("has_locks", [True, False])
def test_another_machine_s_holder_is_given_time(
    has_locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STILL_SECONDS", 0.3)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.0)
    if not has_locks:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    write_record(tmp_path)
    said: list[str] = []
    held = FolderLock(tmp_path, said.append)
    assert [line.partition(" may ")[0] for line in said] == [f"{tmp_path}: process 5 on node2 (SLURM job 8)"]
    held.release()


@pytest.mark.parametrize("has_locks", [True, False])
def test_another_machine_s_holder_that_gives_a_sign_is_at_work(
    has_locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_locks:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    write_record(tmp_path)
    content = (tmp_path / LOCK_FILE).read_bytes()
    with pytest.raises(UserError, match=r"process 5 on node2 \(SLURM job 8\) at work in it"):
        FolderLock(tmp_path, lambda _: os.utime(tmp_path / LOCK_FILE))
    assert (tmp_path / LOCK_FILE).read_bytes() == content


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "no locks available")


def test_without_locks_the_last_to_write_of_two_newcomers_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(lock.time, "sleep", lambda _: write_record(tmp_path))
    with pytest.raises(UserError, match=r"process 5 on node2 \(SLURM job 8\) at work in it"):
        FolderLock(tmp_path, never)


def test_a_holder_touches_the_file_and_notices_that_it_lost_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TOUCH_SECONDS", 0.01)
    held = FolderLock(tmp_path, never)
    os.utime(tmp_path / LOCK_FILE, (0, 0))
    while (tmp_path / LOCK_FILE).stat().st_mtime == 0:
        time.sleep(0.01)
    held.require()
    write_record(tmp_path)
    with pytest.raises(UserError, match=r"process 5 on node2 \(SLURM job 8\) at work in it"):
        held.require()
    held.release()
    assert (tmp_path / LOCK_FILE).exists()  # it is somebody else's


def test_a_file_of_that_name_that_no_run_wrote_stays(tmp_path: Path) -> None:
    for content in (b"my notes", b"[1]", b'{"host": 1}', b"\xff", b"[" * 100_000):
        (tmp_path / LOCK_FILE).write_bytes(content)
        with pytest.raises(UserError, match=r"lock: found something that no run has written"):
            FolderLock(tmp_path, never)
        assert (tmp_path / LOCK_FILE).read_bytes() == content
