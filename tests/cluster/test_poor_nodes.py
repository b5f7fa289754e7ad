"""Nodes without network, with a full or a read-only disk: a line that says what is missing, and nothing is lost."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.runs import ROOT, environment, launch, results, same_log, write_config

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
# A disk of a few checkpoints that is then read-only for a while, and then larger. In a mount namespace of its own.
POOR = """
mount -t tmpfs -o size=104k none "$2"
"$1" launch.py run "$3" --out "$2/run" 2> "$2.full"; echo $?
mount -o remount,ro "$2"
"$1" launch.py run "$3" --out "$2/run" --resume 2> "$2.read_only"; echo $?
mount -o remount,rw,size=50m "$2"
"$1" launch.py run "$3" --out "$2/run" --resume 2> "$2.larger"; echo $?
cp -r "$2/run" "$2.kept"
"""


def apart(kind: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a namespace of its own."""
    able = ["unshare", kind, "true"]
    if shutil.which("unshare") is None or os.getuid() != 0 or subprocess.run(able, capture_output=True).returncode != 0:
        pytest.skip("namespaces are not allowed here")
    command = ["unshare", kind, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)


def test_a_full_and_a_read_only_disk_are_a_line_each_and_the_run_goes_on_later(tmp_path: Path) -> None:
    config, disk = write_config(tmp_path), tmp_path / "disk"
    disk.mkdir()
    done = apart("--mount", "sh", "-c", POOR, "sh", sys.executable, disk, config)
    lines = done.stdout.splitlines()
    codes = [line for line in lines if line.isdigit()]
    assert codes == ["2", "2", "0"], done.stdout + done.stderr
    for name, reason in (("full", "No space left on device"), ("read_only", "Read-only file system")):
        (line,) = Path(f"{disk}.{name}").read_text().splitlines()
        assert line.startswith(f"error: {disk}/run")
        assert f": found {reason}; expected " in line
    assert launch(0, "run", config, "--out", tmp_path / "alone").returncode == 0
    assert results(Path(f"{disk}.kept")) == results(tmp_path / "alone")
    assert same_log(Path(f"{disk}.kept"), tmp_path / "alone")


def test_what_was_fetched_needs_no_network(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("name: digits", "name: brain_mri").replace("rounds: 3", "rounds: 1"))
    fetched = launch(0, "assets", "fetch", "rated_sentences", config)
    assert fetched.returncode == 0, fetched.stderr
    assert f"{config}: all that it reads is here" in fetched.stdout
    done = apart("--net", sys.executable, "launch.py", "run", config, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "run")["status"] == "finished"
