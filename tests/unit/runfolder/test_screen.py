"""What a person sees of a run on a terminal of 80 columns."""

import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fedsim.runfolder.screen import fitting, short_parts
from tests.distributed.runs import ROOT, environment, write_config

COLUMNS = 80
ROW = {
    "round": 7,
    "train_loss": 0.5,
    "val": {"loss": 0.25, "accuracy": 0.75, "balanced_accuracy": 0.5, "recall": 0.5, "auroc": float("nan")},
}
WIDE = {"clients.count": "3", "data.max_train": "30", "rounds": "30", "algorithm": "{name: fedavg}"}
FEW = "data.fractions={val: 0.01, test: 0.01}"


def test_the_weightiest_numbers_come_first() -> None:
    parts = short_parts(ROW, "recall")
    assert parts == [
        *("loss 0.5000", "macro recall 0.5000", "val loss 0.2500", "accuracy 0.7500", "balanced accuracy 0.5000"),
        "AUROC -",
    ]
    assert short_parts(ROW, None)[1] == "accuracy 0.7500"
    assert short_parts({"round": 1, "train_loss": None}, "recall") == ["loss -"]


@pytest.mark.parametrize("width", [20, 40, 60, 79, 80, 200])
def test_a_line_has_what_fits(width: int) -> None:
    parts = short_parts(ROW, None)
    line = fitting("round 7/30", parts, "1.2 s", width)
    assert len(line) <= width
    assert line.startswith("round 7/30  ")
    assert line.endswith("  1.2 s")
    shown = line.removeprefix("round 7/30  ").removesuffix("1.2 s").rstrip()
    assert "  ".join(parts).startswith(shown)
    if width == 200:
        assert shown == "  ".join(parts)


def wide_run(folder: Path) -> list[str]:
    """The command of a run of 30 rounds."""
    changes = [f"{key}={value}" for key, value in WIDE.items()]
    return [sys.executable, "launch.py", "run", str(write_config(folder)), *changes, FEW, "--out", "runs/r"]


@pytest.mark.slow
def test_the_lines_of_thirty_rounds_fit_a_terminal(tmp_path: Path) -> None:
    """What tmux shows is the same when it joins lines that were too long for its width."""
    if (tmux := shutil.which("tmux")) is None:
        pytest.skip("tmux is missing, whose screen is looked at")
    server = [tmux, "-L", f"fedsim-{os.getpid()}", "-f", "/dev/null"]
    words = shlex.join(wide_run(tmp_path)).replace("runs/r", str(tmp_path / "r"))
    shell = f"unset COLUMNS LINES; cd {shlex.quote(str(ROOT))}; {words}; echo code $?; sleep 60"
    size = ["-x", str(COLUMNS), "-y", "24"]
    subprocess.run([*server, "new-session", "-d", *size, shell], env=environment(), check=True)
    try:
        end = time.monotonic() + 120
        plain = joined = ""
        while "code 0" not in plain:
            assert time.monotonic() < end, plain
            time.sleep(0.2)
            plain, joined = (
                subprocess.run(
                    [*server, "capture-pane", "-p", *join, "-S", "-"], capture_output=True, text=True, check=True
                ).stdout
                for join in ([], ["-J"])
            )
    finally:
        subprocess.run([*server, "kill-server"], check=False)
    rounds = [line for line in plain.splitlines() if line.startswith("round ")]
    assert len(rounds) == 30
    assert all("accuracy" in line and line.rstrip().endswith("evaluating") for line in rounds)
    own = str(tmp_path)  # a path is one word, however long
    folded = [line for line in joined.splitlines() if len(line.rstrip()) > COLUMNS and own not in line]
    assert folded == []


def test_a_terminal_shows_what_goes_on_and_how_long_it_will_take(tmp_path: Path) -> None:
    """The bar, as a terminal gets it: phase and evaluation by name, remaining time, in one line."""
    program = """
import time
from fedsim.runfolder.screen import Screen
screen = Screen(5)
for number in (1, 2):
    screen.start_round(number)
    screen.progress("phase train: 1234 blocks of up to 99 clients, and much more to be said about them")
    time.sleep(0.3)
    screen.progress("evaluation: 40 images")
    time.sleep(0.3)
    row = {"round": number, "train_loss": 1.0, "val": {"accuracy": 0.5}}
    screen.end_round(row, {"seconds": 90.0, "evaluation_seconds": 30.0})
    time.sleep(0.3)
screen.close()
"""
    shown = on_terminal([sys.executable, "-c", program], tmp_path)
    for words in ("phase train: 12", "evaluation: 40 images", "0:06:00 left", "0:04:30 left", "2/5"):
        assert words in shown
    assert "round 2/5  loss 1.0000  accuracy 0.5000  90.0 s, 30.0 evaluating" in shown


def on_terminal(command: list[str], folder: Path) -> str:
    """Run a command on a terminal of 80 columns, and return what it writes, without the signs that steer."""
    ours, theirs = pty.openpty()
    variables = {**environment(COLUMNS=str(COLUMNS)), "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=variables)
    os.close(theirs)
    content = bytearray()

    def read() -> None:
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                return
            content.extend(part)
            if not part:
                return

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(60) == 0, content.decode()
    reader.join(10)
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", content.decode())
