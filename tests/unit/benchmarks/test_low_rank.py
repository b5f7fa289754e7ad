"""The benchmark of the clients' products runs, and its two forms agree."""

import subprocess
import sys

from tests.distributed.runs import ROOT


def test_both_forms_give_the_same_products() -> None:
    command = [sys.executable, "-m", "benchmarks.lora.low_rank", "--widths", "32", "--clients", "6"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [line.strip("|").split("|") for line in done.stdout.splitlines() if "| 6 |" in line]
    rows = [[cell.strip() for cell in line] for line in lines]
    assert [row[2] for row in rows] == ["factored", "dense"]
    assert max(float(row[-1] or 0) for row in rows) < 1e-6
