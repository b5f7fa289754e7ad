"""What ``launch.py cache`` lists, and what it removes: folders that the cache has made, and nothing beside them."""

import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import launch
from fedsim.machine.cache import alone, cached, cached_folder, clear


def fill(num_bytes: int) -> Any:
    return lambda folder: (folder / "file").write_bytes(bytes(num_bytes))


@pytest.fixture
def folders(cache: Path) -> list[Path]:
    """Three folders of the cache, and what somebody else has put beside them."""
    made = [cached_folder(name, 0, fill(2**20 * size)) for name, size in (("brain", 1), ("cells", 2), ("cells-b", 3))]
    (cache / "mine").mkdir()
    (cache / "cells-of-mine").mkdir()
    (cache / "file-0123456789abcdef").write_text("no folder")
    return made


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(launch.app, ["cache", *arguments])


def test_the_list(folders: list[Path], cache: Path) -> None:
    rows = [line.rsplit("  ", 1) for line in invoke().stdout.splitlines()]
    assert [(name.strip(), size.strip()) for name, size in rows] == [
        (folders[0].name, "1.0 MiB"),
        (folders[1].name, "2.0 MiB"),
        (folders[2].name, "3.0 MiB"),
        (f"in {cache}", "6.0 MiB"),
    ]
    assert len(invoke("brain").stdout.splitlines()) == 2
    assert all(folder.is_dir() for folder in folders)


def test_what_was_named_is_removed(folders: list[Path]) -> None:
    result = invoke("cells", "--clear")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].endswith("5.0 MiB")
    assert [folder.path for folder in cached()] == folders[:1]


def test_all_is_removed_but_what_others_have_made(folders: list[Path], cache: Path) -> None:
    assert invoke("--clear").exit_code == 0
    assert [path.name for path in sorted(cache.iterdir()) if path.name[0] != "."] == [
        *("cells-of-mine", "file-0123456789abcdef", "mine"),
    ]
    assert not [path for path in cache.iterdir() if path.is_dir() and path.name[0] == "."]
    assert cached_folder("brain", 0, fill(5)) == folders[0]


def test_a_name_that_is_not_there(folders: list[Path]) -> None:
    result = invoke("brian", "--clear")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: brian: found nothing of that name in ")
    assert all(folder.is_dir() for folder in folders)


def test_who_makes_a_folder_is_not_disturbed(folders: list[Path], cache: Path) -> None:
    cleared = threading.Thread(target=clear, args=(folders[0],))
    with alone(cache / f".{folders[0].name}.lock"):
        cleared.start()
        cleared.join(0.2)
        assert folders[0].is_dir()
    cleared.join(10)
    assert not folders[0].exists()
    clear(folders[0])
    left = [path.name for path in cache.iterdir() if path.is_dir() and path.name.startswith(f".{folders[0].name}")]
    assert not left, "nothing of what was gone already"
