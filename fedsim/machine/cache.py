"""Folders of prepared files: made once, by one process at a time, and whole or absent whatever happens.

Several users may share a cache; whoever can write to it decides on their data, and no code is loaded from it but what
the same user compiled (``fedsim.kernels.seal``). A cache that cannot be written serves what it holds.
The root is ``~/.cache/fedsim``; the environment variable ``FEDSIM_CACHE`` names another.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedsim.errors import UserError

#: The names of folders that ``cached_folder`` makes.
MADE = re.compile(r"[^.].*-[0-9a-f]{16}")


def cache_root() -> Path:
    """The folder that holds everything downloaded or prepared; UserError where it cannot be made."""
    root = Path(os.environ.get("FEDSIM_CACHE") or "~/.cache/fedsim")
    try:
        root = root.expanduser()
        root.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        found = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"FEDSIM_CACHE={root}", str(found), "a folder that can be written") from error
    return root


def cached_folder(
    name: str,
    key: object,
    build: Callable[[Path], None],
    is_whole: Callable[[Path], bool] = Path.is_dir,
    mode: int = 0o755,
) -> Path:
    """Return the folder that ``build`` fills, calling it only where no earlier call with this key finished.

    ``key`` is anything JSON can write. ``build`` gets an empty folder that is renamed when it returns, so a
    folder under its final name is complete. Processes that race wait for the first one; on file systems
    without locks they all build, and the first rename wins. A folder that is not ``is_whole`` is built anew. ``mode``:
    who may read it; the default does not shut others out of a shared cache.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    folder = cache_root() / f"{name}-{digest}"
    if is_whole(folder):
        return folder
    with alone(cache_root() / f".{folder.name}.lock"):
        if not is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            _build_and_rename(folder, build, mode)
    return folder


def _build_and_rename(folder: Path, build: Callable[[Path], None], mode: int = 0o755) -> None:
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder.parent, error) from error
    try:
        temporary.chmod(mode)
        build(temporary)
        temporary.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # otherwise another process was first, and its folder is as good
            raise UserError(f"cache folder {folder}", str(error), "a folder with space left to write") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class CachedFolder:
    """A folder that ``cached_folder`` has made."""

    path: Path
    num_bytes: int


def cached() -> list[CachedFolder]:
    """Return the folders in the cache, by name. What else lies there is not of our making and is left out."""
    folders = sorted(path for path in cache_root().iterdir() if MADE.fullmatch(path.name) and path.is_dir())
    return [CachedFolder(path, _size(path)) for path in folders]


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another process clears it at this moment
            total += path.lstat().st_size
    return total


def clear(folder: Path) -> None:
    """Remove a folder of the cache; who has its files open keeps them. UserError where that is not allowed."""
    with alone(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():  # another process was first
            return
        try:
            # Under another name first, so that under its own it is whole or absent.
            gone = folder.rename(Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)) / "old")
            shutil.rmtree(gone.parent)
        except FileNotFoundError:  # the same, where the file system has no locks
            return
        except OSError as error:
            raise _unwritable(folder.parent, error) from error


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold the lock of that name, which ends with its holder; processes that want it too wait.

    UserError where it cannot be had, as in a cache that cannot be written.
    """
    try:
        file = _open_lock(lock)
    except OSError as error:
        raise _unwritable(lock.parent, error) from error
    try:
        with suppress(OSError):  # a file system without locks: the work may be done twice, with the same result
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _open_lock(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except PermissionError:  # another user's, which can be locked all the same
        return os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cache folder {folder}", str(error.strerror), "a folder that can be written (see FEDSIM_CACHE)")


def load_mapped(path: Path) -> npt.NDArray[np.uint8]:
    """Map an .npy file so that all processes of a machine share its pages; writes stay private."""
    array: npt.NDArray[np.uint8] = np.load(path, mmap_mode="c", allow_pickle=False)
    return array
