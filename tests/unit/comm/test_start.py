"""Ranks that this process starts: what they are told, how they end, and that none is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fedsim.comm import start
from fedsim.comm.leave import LEFT
from fedsim.comm.start import run_ranks
from fedsim.errors import UserError

SAY = """
import os, sys
from fedsim.comm.launcher import find_place
place = find_place()
print(place.rank, place.num_ranks, place.local_rank, place.launcher, os.environ["OMP_NUM_THREADS"], sys.argv[1:])
print(f"rank {place.rank} errs", file=sys.stderr)
"""
FAIL = """
import os, sys, time
if os.environ["RANK"] == "1":
    print("error: here: found this; expected that", file=sys.stderr)
    sys.exit(int(sys.argv[1]))
time.sleep(100)
"""
WAIT = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1], os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(100)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that ranks find as this process does: ``tmp_path``/mine_to_start.py."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return "mine_to_start"


def written(folder: Path, text: str) -> None:
    (folder / "mine_to_start.py").write_text(text)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(folder: Path, count: int) -> list[int]:
    """The ranks' processes, once all have begun."""
    end = time.monotonic() + 200
    while time.monotonic() < end:
        texts = [path.read_text() for path in folder.glob("[0-9]")]
        if len(texts) == count and all(texts):
            return [int(text) for text in texts]
        time.sleep(0.05)
    raise AssertionError("not all ranks have begun")


def await_death(found: list[int]) -> None:
    end = time.monotonic() + 200
    while any(is_alive(pid) for pid in found):
        assert time.monotonic() < end, "a rank is left"
        time.sleep(0.05)


def test_every_rank_is_told_where_it_stands(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, SAY)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    told: list[str] = []
    code, errors = run_ranks(module, ["a", "--b"], 2, told.append)
    assert (code, told) == (0, ["0 2 0 fedsim 3 ['a', '--b']"])
    assert sorted(errors.splitlines()) == ["rank 0 errs", "rank 1 errs"]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert run_ranks(module, [], 1, told.append)[0] == 0
    assert told[1] == "0 1 0 fedsim 1 []"


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (1, 1), (7, 1)])
def test_one_rank_that_fails_ends_all(
    code: int, expected: int, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, FAIL)
    monkeypatch.setattr(start, "GRACE_SECONDS", 0.5)
    found = run_ranks(module, [str(code)], 3, str)
    assert found == (expected, "error: here: found this; expected that\n")


def test_an_exception_ends_all(module: str, tmp_path: Path) -> None:
    written(tmp_path, "import os\nprint('begun', flush=True)\n" + WAIT)

    def interrupt(line: str) -> None:
        assert line == "begun"
        pids(tmp_path, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_ranks(module, [str(tmp_path)], 2, interrupt)
    await_death(pids(tmp_path, 2))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_ranks_end_with_who_started_them(sign: signal.Signals, module: str, tmp_path: Path) -> None:
    written(tmp_path, WAIT)
    # A shell's background jobs, of which a test run may be one, ignore interrupts, and so would this.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listen}; from fedsim.comm.start import run_ranks; run_ranks({module!r}, [{str(tmp_path)!r}], 2)"
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    starter = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, stderr=-3)
    found = pids(tmp_path, 2)
    starter.send_signal(sign)
    assert starter.wait(200) != 0
    await_death(found)


def test_ranks_that_were_told_before_they_could_hear_have_left(module: str, tmp_path: Path) -> None:
    written(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    assert run_ranks(module, [], 2, lambda _: None)[0] == LEFT


def test_ranks_start_no_ranks(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="found 4 by one of 2 ranks that torchrun started"):
        run_ranks(module, [], 4, str)


def test_lines_are_told_by_the_thread_that_asked(module: str, tmp_path: Path) -> None:
    """A notebook shows what the thread of its cell prints."""
    written(tmp_path, SAY)
    threads: list[int] = []
    run_ranks(module, [], 1, lambda _: threads.append(threading.get_ident()))
    assert threads == [threading.get_ident()]
