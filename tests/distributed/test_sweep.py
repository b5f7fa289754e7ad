"""A sweep as it is started: killed, gone on with, and with a cell that fails."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.distributed.runs import ROOT, TINY, command, environment, launch, same_log
from tests.distributed.test_failures import wait_for

pytestmark = pytest.mark.slow

BROKEN = """
from fedsim.algorithms.base import Algorithm

class Broken(Algorithm):
    def pre_aggregate(self, update):
        raise ArithmeticError("enough")
"""


def test_a_killed_sweep_goes_on_and_a_broken_cell_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "broken_cell.py").write_text(BROKEN)
    (tmp_path / "tiny.yaml").write_text(TINY)
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    names = ["broken_cell.Broken", "deer"]
    file.write_text(yaml.safe_dump({"base": "tiny.yaml", "grid": {"algorithm.name": names}}))
    words = ("sweep", file, "--out", out)
    process = subprocess.Popen(
        command(0, *words), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    rows = out / "deer" / "metrics.jsonl"
    wait_for(lambda: rows.exists() and rows.read_bytes().count(b"\n") >= 1, 200)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    wait_for(lambda: not processes_of(out), 60)
    assert not (out / "deer" / "results.json").exists()

    # Other ranks, the same bits.
    done = launch(0, *words, "--ranks", 2)
    assert done.returncode == 1, done.stderr
    assert re.search(
        r"cell 1 of 2, broken_cell.Broken: FAILED .*ArithmeticError: enough; see .*Broken.log", done.stdout
    )
    assert re.search(r"cell 2 of 2, deer: starts \(after round \d of 3\)", done.stdout)
    assert "cell 2 of 2, deer: done" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("1 of 2 cells done")
    assert json.loads((out / "deer" / "environment.json").read_text())["ranks"] == 2

    whole = tmp_path / "whole"
    assert launch(0, "run", tmp_path / "tiny.yaml", "name=deer", "--out", whole).returncode == 0
    assert same_log(out / "deer", whole)


def processes_of(out: Path) -> list[int]:
    """The processes that have the folder in their command lines."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and int(place.name) != os.getpid():
            try:
                if str(out).encode() in (place / "cmdline").read_bytes():
                    found.append(int(place.name))
            except OSError:
                continue
    time.sleep(0.1)
    return found
