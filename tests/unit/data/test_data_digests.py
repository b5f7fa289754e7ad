"""Digests of data files."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from fedsim.data import digests
from fedsim.data.digests import content_digests, describe_files
from fedsim.errors import UserError


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "set" / name for name in ("b.txt", "a/c.txt", "ä.txt")]
    for number, path in enumerate(found):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * number)
    return found


def test_the_digest_is_that_of_the_lines_of_sha256sum(files: list[Path]) -> None:
    names = sorted(str(path.relative_to(files[0].parent)).encode() for path in files)
    lines = subprocess.run(["sha256sum", *names], cwd=files[0].parent, capture_output=True, check=True).stdout
    found = describe_files(files)
    assert found is not None
    assert found["sha256"] == hashlib.sha256(lines).hexdigest()
    assert (found["files"], found["bytes"]) == (3, 3)
    assert found["each"]["a/c.txt"] == hashlib.sha256(b"x").hexdigest()
    assert describe_files(files[::-1]) == found
    assert describe_files([]) is None


def test_other_content_or_another_name_is_another_digest(files: list[Path]) -> None:
    before = describe_files(files)
    files[1].write_bytes(b"y")
    changed = describe_files(files)
    moved = files[1].rename(files[1].with_name("d.txt"))
    renamed = describe_files([files[0], moved, files[2]])
    assert len({str(found and found["sha256"]) for found in (before, changed, renamed)}) == 3


@pytest.mark.usefixtures("cache")
def test_of_many_files_only_the_sum_is_named(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "NUM_LISTED", 2)
    found = describe_files(files)
    assert found is not None
    assert found["each"] is None


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("limit", ["DIRECT_BYTES", "NUM_LISTED"])
def test_digests_of_much_are_computed_once(files: list[Path], limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want = content_digests(files)
    monkeypatch.setattr(digests, limit, 0)
    assert content_digests(files) == want
    monkeypatch.setattr(digests, "_compute", lambda *_: pytest.fail("computed again"))
    assert content_digests(files) == want
    monkeypatch.undo()
    assert content_digests(files, "md5") == [hashlib.md5(path.read_bytes()).hexdigest() for path in files]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found Is a directory; expected a readable file"):
        content_digests([tmp_path])
