"""The end of a process."""

import atexit
import contextlib
import os
import sys
import threading


def end(code: int) -> None:
    """End this process as Python does, after threads and exit handlers, but leave its modules as they are.

    To take PyTorch's apart costs more than a second and touches 100 MiB; the system frees all at once. Returns where
    what was printed cannot be written, which Python's own end tells.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # no public name for what Python does first
    with contextlib.suppress(OSError):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
