"""The end of a process: what is printed arrives, handlers and threads are waited for, and the code is the one given."""

import os
import pstats
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from tests.distributed.runs import ROOT


def python(code: str, stdout: "int | IO[str]") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from fedsim.machine.ending import end\n" + code]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, text=True, timeout=60, stdout=stdout, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize("code", [0, 2, 75])
def test_it_ends_as_python_does(code: int) -> None:
    done = python(
        "import atexit, sys, threading, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "atexit.register(print, 'handler')\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\n"
        "ThreadPoolExecutor(1).submit(print, 'pool').result()\n"
        f"print('told', end=''); print('error', end='', file=sys.stderr); end({code})",
        subprocess.PIPE,
    )
    assert (done.returncode, done.stderr) == (code, "error")
    assert done.stdout == "pool\ntoldthread\nhandler\n"


def test_what_nobody_has_closed_is_written(tmp_path: Path) -> None:
    text, binary = tmp_path / "text", tmp_path / "binary"
    done = python(
        f"import ctypes; log = open({str(text)!r}, 'w'); print('a line', file=log)\n"
        f"raw = open({str(binary)!r}, 'wb'); raw.write(b'bytes')\n"
        "ctypes.CDLL(None).printf(b'of C'); import gc; gc.freeze(); end(0)",
        subprocess.PIPE,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "of C")
    assert (text.read_text(), binary.read_bytes()) == ("a line\n", b"bytes")


def test_a_stream_that_was_taken_apart_changes_no_code() -> None:
    done = python("import io; apart = io.TextIOWrapper(io.BytesIO()); apart.detach(); end(0)", subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_profiler_sees_the_end(tmp_path: Path) -> None:
    out = tmp_path / "profile"
    command = [sys.executable, "-m", "cProfile", "-o", str(out), "launch.py", "--version"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60).returncode == 0
    assert pstats.Stats(str(out)).get_stats_profile().func_profiles


def test_output_that_cannot_be_written_is_told_as_ever() -> None:
    with Path("/dev/full").open("w") as full:
        done = python("print('lost'); end(0); raise SystemExit(0)", full)
    assert done.returncode == 120
    assert os.strerror(28) in done.stderr
