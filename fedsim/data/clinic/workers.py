"""The processes of an import: each takes a few files at a time, and ends with the process that began it."""

import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

from fedsim.data.clinic.convert import Pseudonyms, convert
from fedsim.data.clinic.journal import stamp_of
from fedsim.data.clinic.render import Row, Settings
from fedsim.errors import UserError, one_line
from fedsim.machine.memory import keep_freed_memory

FILES_AT_ONCE = 8
#: For each process: one that it works on, and one that waits.
PARTS_AHEAD = 2


class Done(NamedTuple):
    """A file, the state that it had when it was read, and its rows of the manifest."""

    source: str
    stamp: list[int]
    rows: list[Row]


class Bad(NamedTuple):
    """A file that cannot be read, and why."""

    source: str
    found: str
    expected: str


def converted(
    root: Path, out: Path, sources: Sequence[str], settings: Settings, pseudonyms: Pseudonyms, processes: int
) -> Iterator[Done | Bad]:
    """Yield what has become of each of ``sources``, in their order; only a few wait in memory.

    UserError where a process is ended from outside.
    """
    work = partial(_convert_some, root, out, settings, pseudonyms)
    parts = [sources[first : first + FILES_AT_ONCE] for first in range(0, len(sources), FILES_AT_ONCE)]
    if processes == 1 or len(parts) < 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in the other processes
            for part in parts:
                yield from work(part)
        return
    with ProcessPoolExecutor(min(processes, len(parts)), get_context("spawn"), _begin) as pool:
        waiting: deque[Future[list[Done | Bad]]] = deque()
        try:
            for part in parts:
                waiting.append(pool.submit(work, part))
                if len(waiting) > PARTS_AHEAD * processes:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            found = "a process that was ended from outside, perhaps for want of memory"
            raise UserError("the import", found, "room for all --processes; the same command goes on") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin() -> None:
    """Prepare a process: silence about odd files, which is said by name or not at all, and an end with its parent.

    What a terminal sends to end a program is its parent's to answer. Memory that a file took is kept for the next one:
    given back and taken anew, its pages cost a sixth of the work.
    """
    keep_freed_memory()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None, "a pool has begun this process"

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _convert_some(
    root: Path, out: Path, settings: Settings, pseudonyms: Pseudonyms, sources: Sequence[str]
) -> list[Done | Bad]:
    return [_convert_one(root, out, source, settings, pseudonyms) for source in sources]


def _convert_one(root: Path, out: Path, source: str, settings: Settings, pseudonyms: Pseudonyms) -> Done | Bad:
    try:
        stamp = stamp_of(root / source)
        return Done(source, stamp, convert(root, out, source, settings, pseudonyms))
    except UserError as error:
        return Bad(source, one_line(error.found), one_line(error.expected))
