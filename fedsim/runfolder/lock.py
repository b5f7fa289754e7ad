"""One run at a time in a folder, on one machine or on several that share it.

The file ``lock`` says who: host, process, SLURM job. The system's own lock on it (flock, which NFS brings before its
server) is there as long as its holder, suspended or not, and goes with it however it ends. Some shared file systems
keep such locks to each machine, and some have none. So the holder also touches the file every few seconds, and where
the last one was on another machine and did not sign off, a newcomer first waits until nobody has touched the file for
a minute. Both times are the file system's, so the clocks of two machines need not agree.
"""

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from fedsim.errors import UserError

LOCK_FILE = "lock"
TOUCH_SECONDS = 10.0
STILL_SECONDS = 60.0
# Without locks two newcomers may both find nobody and write; after this time both see who wrote last.
SETTLE_SECONDS = 2.0
BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")


class FolderLock:
    """The right of this process to write in ``folder``, from here to ``release`` or the process's end."""

    def __init__(self, folder: Path, say: Callable[[str], object]) -> None:
        """Take it; UserError that names the holder where there is one. ``say`` is told before a wait."""
        self._path = folder / LOCK_FILE
        self._me = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
        self._me["boot"] = BOOT_FILE.read_text().strip()
        self._record = (json.dumps(self._me) + "\n").encode()
        self._file, is_locked = self._open()
        try:
            holder = _parse(self._path, self._file.read())
            if holder and not (is_locked and holder["boot"] == self._me["boot"]):
                self._await_stillness(holder, say)
            self._write(self._record)
            if not is_locked:
                time.sleep(SETTLE_SECONDS)
                self.require()
        except BaseException:
            self._file.close()
            raise
        self._released = threading.Event()
        self._toucher = threading.Thread(target=self._touch, daemon=True)
        self._toucher.start()

    def require(self) -> None:
        """UserError unless the folder is still this process's: somebody may have removed the lock, or outlived it."""
        found = self._path.read_bytes()
        if found != self._record:
            raise _refusal(self._path.parent, _parse(self._path, found))

    def release(self) -> None:
        """Let others in, and leave no file."""
        self._released.set()
        self._toucher.join()
        with contextlib.suppress(OSError, UserError):
            self.require()
            self._path.unlink()
        self._file.close()

    def _open(self) -> tuple[BinaryIO, bool]:
        """Return the file, positioned at its start, and whether the system's lock on it is held."""
        while True:
            file = self._path.open("a+b")
            file.seek(0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with file:
                    raise _refusal(self._path.parent, _parse(self._path, file.read())) from None
            except OSError:
                return file, False
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    return file, True
            file.close()  # its holder has just gone, and the file with it

    def _write(self, content: bytes) -> None:
        self._file.truncate(0)
        self._file.write(content)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _await_stillness(self, holder: dict[str, Any], say: Callable[[str], object]) -> None:
        """Return when nobody has touched the file for long enough; UserError where somebody does meanwhile."""
        touched, is_told = self._touched(), False
        while (now := _file_time(self._path.parent)) - touched < STILL_SECONDS:
            if not is_told:
                left = STILL_SECONDS - (now - touched)
                say(f"{self._path.parent}: {_show(holder)} may still be at work; waiting {left:.0f} seconds for a sign")
                is_told = True
            time.sleep(min(1.0, STILL_SECONDS / 10))
            if self._touched() != touched:
                raise _refusal(self._path.parent, holder)

    def _touched(self) -> float:
        # Opening is what makes a network file system ask its server anew.
        with self._path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime

    def _touch(self) -> None:
        while not self._released.wait(TOUCH_SECONDS):
            with contextlib.suppress(OSError):  # the run itself meets what is wrong with the disk, and tells it
                os.utime(self._file.fileno())


def last_sign(folder: Path) -> tuple[str, float] | None:
    """Return who holds ``folder``, and when the file system says that it last gave a sign; None for nobody.

    Takes no lock, for even a shared one would refuse a run that starts at this moment.
    """
    try:
        with (folder / LOCK_FILE).open("rb") as file:  # opened for the reason above
            content, touched = file.read(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    holder: dict[str, Any] = {}
    with contextlib.suppress(UserError):  # somebody is just writing it
        holder = _parse(folder / LOCK_FILE, content)
    return _show(holder), touched


def _file_time(folder: Path) -> float:
    """What the time is to the file system."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".time.", suffix=".tmp") as file:
        return os.fstat(file.fileno()).st_mtime


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    """Return what a holder has written; nothing where nobody has. UserError for what no holder writes."""
    if not content:
        return {}
    try:
        holder = json.loads(content)
        return {key: holder[key] for key in ("host", "pid", "job", "boot")}
    except (ValueError, TypeError, KeyError, RecursionError):
        found = "something that no run has written"
        raise UserError(str(path), found, "no such file where no run is at work; remove it then") from None


def _show(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    job = f" (SLURM job {holder['job']})" if holder["job"] else ""
    return f"process {holder['pid']} on {holder['host']}{job}"


def _refusal(folder: Path, holder: dict[str, Any]) -> UserError:
    return UserError(str(folder), f"{_show(holder)} at work in it", "one run at a time; wait for its end, or --out DIR")
