"""Starting the ranks of a run on this machine, each as a process of its own, and seeing them all to their end.

The starter, ``run_ranks``, may be a notebook: it imports no torch, and its own state is not touched. A rank is the
starter's Python with the starter's ``sys.path``, and ends when the starter is gone, however that came about.
"""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from fedsim.comm.launcher import find_place
from fedsim.comm.leave import LEFT, hearing
from fedsim.errors import UserError

#: How long ranks may take to end by themselves once one has failed, and how long when they are told to.
GRACE_SECONDS = 10.0
POLL_SECONDS = 0.1
#: What a rank does: find what the starter finds, be told by nobody but the starter, and run the module it names.
RANK = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from fedsim.comm.start import obey; obey(); "
    "name = sys.argv.pop(1); runpy.run_module(name, run_name='__main__', alter_sys=True)"
)


def obey() -> None:
    """Leave Ctrl-C to the starter, and end with it: standard input is a pipe that it holds open."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def run_ranks(
    module: str, arguments: Sequence[str], num_ranks: int, tell: Callable[[str], object] | None = None
) -> tuple[int, str]:
    """Run ``python -m module arguments...`` on ranks of this machine to the end; return exit code and errors.

    The code is 0, or 2 where a rank met a mistake of the user's, or 75 where all left as they were told, else 1.
    Without ``tell`` the ranks write to this process's own streams, there are no errors to return, and a signal to leave
    is passed on to them. With it rank 0's lines are told one by one, from this thread, and what the ranks write to
    standard error is returned. Whatever ends this call, such as Ctrl-C, ends all ranks. UserError where this process is
    itself one of several ranks.
    """
    place = find_place()
    if place.num_ranks > 1:
        found = f"{num_ranks} by one of {place.num_ranks} ranks that {place.launcher} started"
        raise UserError("ranks to start", found, "one process that starts them")
    command = [sys.executable, "-c", RANK, json.dumps(sys.path), module, *arguments]
    ranks: list[subprocess.Popen[str]] = []
    try:
        for variables in _environments(num_ranks):
            out = None if tell is None else subprocess.PIPE if not ranks else subprocess.DEVNULL
            error = None if tell is None else subprocess.PIPE
            ranks.append(
                subprocess.Popen(command, env=variables, text=True, stdin=subprocess.PIPE, stdout=out, stderr=error)
            )
        if tell is not None:
            return _follow(ranks, tell)
        with hearing(lambda: _terminate(ranks)):
            return _follow(ranks, tell)
    finally:
        _end(ranks)


def _environments(num_ranks: int) -> list[Mapping[str, str]]:
    """The variables of each rank: where it stands, and one thread unless the user's say otherwise."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    # As torchrun does for several ranks; here also for one, so that any number of ranks gives the same bits.
    common = {"OMP_NUM_THREADS": "1", **own, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"WORLD_SIZE": str(num_ranks), "FEDSIM_RUN": uuid.uuid4().hex}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)]


def _follow(ranks: Sequence["subprocess.Popen[str]"], tell: Callable[[str], object] | None) -> tuple[int, str]:
    """Tell rank 0's lines until all ranks have ended, or one has failed and the others have had time to end.

    Return the exit code, and what was written to standard error.
    """
    lines: queue.Queue[tuple[bool, str | None]] = queue.Queue()
    num_open = 0 if tell is None else _read(ranks, lines)
    errors, since = "", None
    while num_open or any(rank.poll() is None for rank in ranks):
        codes = [rank.poll() for rank in ranks]
        if since is None and (any(codes) or None not in codes):
            since = time.monotonic()
        if since is not None and time.monotonic() - since > GRACE_SECONDS:
            break
        try:
            is_error, line = lines.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            num_open -= 1
        elif is_error:
            errors += line
        elif tell is not None:
            tell(line.rstrip("\n"))
    codes = [rank.poll() for rank in ranks]
    if set(codes) <= {LEFT, -signal.SIGTERM}:  # the latter where a rank was told before it could hear
        return LEFT, errors
    return (2 if 2 in codes else 1 if any(code != 0 for code in codes) else 0), errors


def _read(ranks: Sequence["subprocess.Popen[str]"], lines: queue.Queue[tuple[bool, str | None]]) -> int:
    """Put the lines of rank 0, and all errors, into a queue, each stream's end as None; return how many streams."""

    def read(stream: IO[str], is_error: bool) -> None:
        for line in stream:
            lines.put((is_error, line))
        lines.put((is_error, None))

    streams = [(ranks[0].stdout, False), *((rank.stderr, True) for rank in ranks)]
    for stream, is_error in streams:
        assert stream is not None, "a pipe was asked for"
        threading.Thread(target=read, args=(stream, is_error), daemon=True).start()
    return len(streams)


def _terminate(ranks: Sequence["subprocess.Popen[str]"]) -> None:
    for rank in ranks:
        rank.terminate()


def _end(ranks: Sequence["subprocess.Popen[str]"]) -> None:
    """End whoever is left, first by asking."""
    left = [rank for rank in ranks if rank.poll() is None]
    _terminate(left)
    for rank in left:
        try:
            rank.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()
    for rank in ranks:
        assert rank.stdin is not None, "a pipe was asked for"
        rank.stdin.close()
