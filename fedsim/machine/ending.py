"""The end of a process."""

import atexit
import contextlib
import ctypes
import gc
import io
import os
import sys
import threading

FILES = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


def end(code: int) -> None:
    """End this process as Python does, after threads, exit handlers and what is to be written, but keep its modules.

    To take PyTorch's apart costs more than a second and touches 100 MiB; the system frees all at once. Returns, so that
    Python ends by itself, where a profiler or a debugger waits for that, and where something cannot be written.
    """
    if is_watched():
        return
    threading._shutdown()  # type: ignore[attr-defined]  # no public name for what Python does first
    with contextlib.suppress(OSError, ValueError):  # of a full disk, and of a stream that was taken apart
        atexit._run_exitfuncs()
        gc.unfreeze()
        for found in gc.get_objects():  # files that nobody has closed
            if type(found) in FILES and not found.closed:
                found.flush()
        ctypes.CDLL(None).fflush(None)
        os._exit(code)


def is_watched() -> bool:
    """Whether a profiler, a debugger or a coverage tool looks at what runs."""
    monitoring = getattr(sys, "monitoring", None)  # since Python 3.12
    tools = monitoring is not None and any(monitoring.get_tool(number) for number in range(6))
    return bool(sys.gettrace() or sys.getprofile() or tools)
