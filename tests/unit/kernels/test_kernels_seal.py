"""What is loaded as code: a whole library that this user sealed, in a folder that nobody else can write to."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.errors import UserError
from fedsim.kernels import seal
from fedsim.kernels.seal import LIBRARY, SEAL

KEY = ["c++ 1.0", "source"]
BYTES = bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "kernels"
    path.mkdir(seal.PRIVATE)
    (path / LIBRARY).write_bytes(BYTES)
    seal.seal(path, KEY)
    return path


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def test_what_was_sealed_is_taken_for_its_own_key_alone(folder: Path) -> None:
    assert seal.is_sealed(folder, KEY)
    assert not seal.is_sealed(folder, [*KEY, "more"])
    assert not seal.is_sealed(folder.with_name("absent"), KEY)


def test_a_seal_gives_nobody_else_the_right_to_write(tmp_path: Path) -> None:
    for name in (LIBRARY, SEAL):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o777)
    seal.seal(tmp_path, KEY)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in (LIBRARY, SEAL)} == {0o600}


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut in half": lambda folder: os.truncate(folder / LIBRARY, len(BYTES) // 2),
    "empty": lambda folder: os.truncate(folder / LIBRARY, 0),
    "a byte changed": lambda folder: (folder / LIBRARY).write_bytes(BYTES[:99] + b"!" + BYTES[100:]),
    "longer": lambda folder: (folder / LIBRARY).write_bytes(BYTES + b"!"),
    "no library": lambda folder: (folder / LIBRARY).unlink(),
    "no seal": lambda folder: (folder / SEAL).unlink(),
    "another seal": lambda folder: (folder / SEAL).write_text("0" * 64),
    "a folder in the place of the library": lambda folder: [(folder / LIBRARY).unlink(), (folder / LIBRARY).mkdir()],
    "the library is a link": lambda folder: linked(folder / LIBRARY),
    "the folder is a link": linked,
    "the group can write to the folder": lambda folder: folder.chmod(0o770),
    "all can write to the folder": lambda folder: folder.chmod(0o702),
    "the group can write to the library": lambda folder: (folder / LIBRARY).chmod(0o620),
    "all can write to the seal": lambda folder: (folder / SEAL).chmod(0o602),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_or_open_to_others_is_not_loaded(
    damage: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DAMAGES[damage](folder)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("loaded"))
    assert not seal.is_sealed(folder, KEY)
    with pytest.raises(UserError, match="no library that only its user can change"):
        seal.load(folder, KEY)


def test_another_users_folder_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    for use in (seal.is_sealed, seal.load):
        with pytest.raises(
            UserError, match=f"{folder}: found a folder of user {owner}; expected one of user {owner + 1}"
        ):
            use(folder, KEY)


def test_what_the_system_does_not_load_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=f"{folder / LIBRARY}: found .*; expected a library that this system loads"):
        seal.load(folder, KEY)


def test_no_file_stays_open_where_nothing_is_loaded(folder: Path) -> None:
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    seal.is_sealed(folder, KEY)
    folder.chmod(0o777)
    seal.is_sealed(folder, KEY)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before
