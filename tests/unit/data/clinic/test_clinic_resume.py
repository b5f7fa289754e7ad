"""An import that is ended at any moment goes on to the same bytes, with one process or several."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import launch
from fedsim.data.clinic.journal import Journal
from fedsim.errors import UserError
from tests.unit.data.clinic.clinic_folder import WINDOW, bring_in, write_folder

ROOT = Path(launch.__file__).parent


def content(out: Path) -> dict[str, bytes]:
    """All that is in a set but the journal, whose lines have another order and the times of files."""
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    del found["journal.jsonl"]
    return found


def started(folder: Path, out: Path, salt: Path, processes: int) -> subprocess.Popen[str]:
    words = ["--window", WINDOW, "--salt", str(salt), "--processes", str(processes), "--size", "10"]
    command = [sys.executable, "launch.py", "import", str(folder), "--out", str(out), *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children_of(process: subprocess.Popen[str]) -> list[str]:
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


@pytest.mark.slow
def test_killed_and_gone_on_with_it_is_the_same_set(tmp_path: Path) -> None:
    folder, salt = write_folder(tmp_path / "clinic", num_each=40), tmp_path / "salt"
    salt.write_text("a secret of this test")
    bring_in(folder, tmp_path / "whole", salt=salt, size=10)
    images = tmp_path / "set" / "images"
    process = started(folder, tmp_path / "set", salt, processes=2)
    while process.poll() is None and not images.exists():
        time.sleep(0.01)
    for child in children_of(process):  # as a machine without memory does
        os.kill(int(child), signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 2
    assert "a process that was ended from outside" in said
    process = started(folder, tmp_path / "set", salt, processes=2)
    while process.poll() is None and sum(1 for _ in images.rglob("*.png")) < 20:
        time.sleep(0.01)
    children = children_of(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "set" / "manifest.csv").exists()
    (images / ".half.png.1.tmp").write_bytes(b"half")
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    again = started(folder, tmp_path / "set", salt, processes=2)
    said, _ = again.communicate()
    assert again.returncode == 0
    assert "rows of 240 files" in said
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_what_is_damaged_changed_or_new_is_done_again_and_nothing_else(tmp_path: Path) -> None:
    folder, out = write_folder(tmp_path / "clinic"), tmp_path / "set"
    bring_in(folder, out)
    before = content(out)
    times = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.png")}
    damaged, gone = out / "images/ct/0.dcm.png", out / "images/deep/1.png.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    gone.unlink()
    (folder / "ct/1.dcm").replace(folder / "ct/9.dcm")
    (folder / "ct/2.dcm").write_bytes((folder / "ct/0.dcm").read_bytes())
    with (out / "journal.jsonl").open("ab") as file:
        file.write(b'{"source": "ct/')  # as a kill leaves it
    bring_in(folder, out)
    after = content(out)
    assert after["images/ct/0.dcm.png"] == after["images/ct/2.dcm.png"] == before["images/ct/0.dcm.png"]
    assert after["images/deep/1.png.png"] == before["images/deep/1.png.png"]
    assert after["images/ct/9.dcm.png"] == before["images/ct/1.dcm.png"]
    done = {path.relative_to(out).as_posix() for path, old in times.items() if path.stat().st_mtime_ns != old}
    assert done == {"images/ct/0.dcm.png", "images/ct/2.dcm.png", "images/deep/1.png.png"}
    assert b"ct/1.dcm" not in after["manifest.csv"]


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clinic")
    bring_in(folder, tmp_path / "set")
    journal = Journal(tmp_path / "set")
    with pytest.raises(UserError, match="another import at work"):
        bring_in(folder, tmp_path / "set")
    journal.close()
    bring_in(folder, tmp_path / "set")


def test_a_journal_that_no_import_wrote_is_one_line(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clinic")
    bring_in(folder, tmp_path / "set")
    (tmp_path / "set" / "journal.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match=r"journal\.jsonl"):
        bring_in(folder, tmp_path / "set")


def test_the_command_line_ends_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clinic", num_each=1)
    (folder / "bad.dcm").write_bytes(b"x")
    salt = tmp_path / "salt"
    salt.write_text("a secret of this test")
    process = started(folder, tmp_path / "set", salt, processes=2)
    _, said = process.communicate()
    assert process.returncode == 2
    assert said.startswith("error: 1 of 7 files")
    assert said.count("\n") == 1
    assert any((tmp_path / "set" / "images").iterdir())  # what is good is done


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clinic")
    bring_in(folder, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "images")
    (tmp_path / "set" / "images").write_text("in the way")
    with pytest.raises(UserError, match=r"images.*the same command goes on"):
        bring_in(folder, tmp_path / "set")
