"""A run takes its folder, and leaves in it how it has ended.

torchrun ends with 1 whatever code its ranks end with. So the file ``exit_code`` has theirs: 0, 75 where the run is to
be started again, 2 for a mistake, 1 for a fault. No such file: the run still goes on, or was killed.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

from fedsim.comm.group import Group
from fedsim.comm.leave import LEFT, ToldToLeave
from fedsim.errors import UserError
from fedsim.machine.files import named, write_atomic
from fedsim.runfolder.lock import LOCK_FILE, FolderLock

EXIT_CODE_FILE = "exit_code"


def claim_folder(folder: Path, config: str, resume: bool, say: Callable[[str], object]) -> tuple[FolderLock, bool]:
    """Lock the folder, and create it with this content of config.yaml where it is not in use.

    Return the lock and whether it is. UserError where somebody is at work there, where it is in use and ``resume`` is
    false, and where it is no run's.
    """
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_run_folder(folder)  # before anything is written there
        lock = FolderLock(folder, say)
        is_used = _require_run_folder(folder)
        if is_used and not resume:
            raise UserError(str(folder), "a folder that is in use", "--resume to go on with it, or another --out DIR")
        if not is_used:
            write_atomic(folder / "config.yaml", config.encode())
        (folder / EXIT_CODE_FILE).unlink(missing_ok=True)
    except BaseException as error:
        if lock is not None:
            lock.release()
        if isinstance(error, OSError):
            raise UserError(str(folder), error.strerror or str(error), "a folder that can be written") from None
        raise
    return lock, is_used


def _require_run_folder(folder: Path) -> bool:
    """Return whether a folder is in use; UserError where no run uses it."""
    # A start that was killed early leaves a temporary file or a lock, and nothing else.
    is_used = any(entry.suffix != ".tmp" and entry.name != LOCK_FILE for entry in folder.iterdir())
    if is_used and not (folder / "config.yaml").is_file():
        raise UserError(str(folder), "files, but no config.yaml", "a run folder, or another --out DIR")
    return is_used


def leave_folder(group: Group, folder: Path, lock: FolderLock | None, error: BaseException | None) -> None:
    """Let others into a folder when no rank writes there any more. Every rank calls this.

    ``error``: what ends the work before its time; UserError in its place where it is about the folder's files.
    """
    refusal = named(error, folder) if isinstance(error, OSError) else None
    if is_in_order(error):
        if group.is_server:
            note_end(folder, error)
        group.broadcast("all ranks have left the folder")
    else:
        with contextlib.suppress(OSError, UserError):
            if lock is not None:
                lock.require()  # or it is another run's by now
            note_end(folder, refusal or error)
    # Where one of several ranks fails the others may write for another moment, so the lock goes with the process.
    if lock is not None and (is_in_order(error) or group.num_ranks == 1):
        lock.release()
    if refusal is not None:
        raise refusal from error


def is_in_order(error: BaseException | None) -> bool:
    """Whether all ranks come to their end together."""
    return error is None or isinstance(error, ToldToLeave)


def note_end(folder: Path, error: BaseException | None) -> None:
    """Write what the process ends with. Of several ranks that fail the first one knows the cause, and is not changed.

    A disk on which there is no room for it leaves it out.
    """
    file = folder / EXIT_CODE_FILE
    try:
        if is_in_order(error):
            write_atomic(file, b"0\n" if error is None else f"{LEFT}\n".encode())
            return
        code = 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, UserError) else 1
        with file.open("x") as new:
            new.write(f"{code}\n")
    except FileExistsError:
        pass
    except OSError:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
