"""Only what this user compiled, and nobody else can have changed, is loaded as code.

A library lies in a folder that is open to its user alone, beside a digest of it and of what it was made from. Folder
and file are opened once, and everything is asked of what was opened: whoever may write to the cache's root cannot
exchange them between the look and the use.
"""

import ctypes
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fedsim.errors import UserError

LIBRARY = "kernels.so"
SEAL = "kernels.sha256"
PRIVATE = 0o700
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def seal(folder: Path, key: object) -> None:
    """Write down what the library in this folder is, and what it was made from."""
    (folder / SEAL).write_bytes(_digest(key, (folder / LIBRARY).read_bytes()))
    for name in (LIBRARY, SEAL):
        (folder / name).chmod(0o600)


def is_sealed(folder: Path, key: object) -> bool:
    """Whether a whole library of this key is there; UserError where the folder is another user's."""
    with _opened(folder, key) as library:
        return library is not None


def load(folder: Path, key: object) -> ctypes.CDLL:
    """Load what was sealed; UserError where there is no such library, or the system does not take it."""
    with _opened(folder, key) as library:
        if library is None:
            raise UserError(str(folder), "no library that only its user can change", "a file system with owners")
        # The copy stays open: the loader tells libraries by name, and would take the next of this number for this one.
        try:
            return ctypes.CDLL(f"/proc/self/fd/{os.dup(library)}")
        except OSError as error:
            raise UserError(str(folder / LIBRARY), str(error), "a library that this system loads") from error


@contextmanager
def _opened(folder: Path, key: object) -> Iterator[int | None]:
    with ExitStack() as stack:

        def open_own(path: Path | str, flags: int, inside: int | None = None) -> int:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=inside)
            stack.callback(os.close, file)
            found = os.fstat(file)
            if found.st_uid != os.geteuid() and inside is None:
                raise UserError(str(folder), f"a folder of user {found.st_uid}", f"one of user {os.geteuid()}")
            if found.st_uid != os.geteuid() or found.st_mode & OTHERS_WRITE:
                raise PermissionError
            return file

        library = None
        try:
            inside = open_own(folder, os.O_DIRECTORY)
            candidate = open_own(LIBRARY, 0, inside)
            if _read(open_own(SEAL, 0, inside)) == _digest(key, _read(candidate)):
                library = candidate
        except OSError:  # absent, a link, or open to others: to be compiled anew
            pass
        yield library


def _digest(key: object, library: bytes) -> bytes:
    return hashlib.sha256(json.dumps(key).encode() + b"\n" + library).hexdigest().encode()


def _read(file: int) -> bytes:
    with open(file, "rb", closefd=False) as stream:
        return stream.read()
