"""Become another program, which ends with the process that started it: ``python bound.py PID PROGRAM [WORD]...``.

A program of its own, since between fork and exec a process with threads may do next to nothing. Imports nothing slow.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def become(parent: int, command: list[str]) -> None:
    """Run ``command`` in place of this process; it gets SIGTERM when the process ``parent``, its parent, ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has ended before it could be told
        raise SystemExit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
