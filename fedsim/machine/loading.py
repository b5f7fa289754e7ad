"""Loading what a run needs, which stays to its end."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import inside the ``with``: no search for garbage goes through the objects of these modules.

    There are about a million. At the process's end they are taken apart as ever, which Triton insists on.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)
