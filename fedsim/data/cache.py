"""Folders of prepared files: made once, by one process at a time, and whole or absent whatever happens.

The root is ``~/.cache/fedsim``; the environment variable ``FEDSIM_CACHE`` names another.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedsim.errors import UserError


def cache_root() -> Path:
    """The folder that holds everything downloaded or prepared; UserError where it cannot be made."""
    root = Path(os.environ.get("FEDSIM_CACHE") or "~/.cache/fedsim").expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"FEDSIM_CACHE={root}", str(error.strerror), "a folder that can be written") from error
    return root


def cached_folder(name: str, key: object, build: Callable[[Path], None]) -> Path:
    """Return the folder that ``build`` fills, calling it only where no earlier call with this key finished.

    ``key`` is anything JSON can write. ``build`` gets an empty folder that is renamed when it returns, so a
    folder under its final name is complete. Processes that race wait for the first one; on file systems
    without locks they all build, and the first rename wins.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    folder = cache_root() / f"{name}-{digest}"
    if folder.is_dir():
        return folder
    with alone(cache_root() / f".{folder.name}.lock"):
        if not folder.is_dir():
            _build_and_rename(folder, build)
    return folder


def _build_and_rename(folder: Path, build: Callable[[Path], None]) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp gives 0o700, which would shut others out of a shared cache
        build(temporary)
        temporary.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # otherwise another process was first, and its folder is as good
            raise UserError(f"cache folder {folder}", str(error), "a folder with space left to write") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold the lock of that name, which ends with its holder; processes that want it too wait."""
    with lock.open("w") as file:
        with suppress(OSError):  # a file system without locks: the work may be done twice, with the same result
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def load_mapped(path: Path) -> npt.NDArray[np.uint8]:
    """Map an .npy file so that all processes of a machine share its pages; writes stay private."""
    array: npt.NDArray[np.uint8] = np.load(path, mmap_mode="c", allow_pickle=False)
    return array
