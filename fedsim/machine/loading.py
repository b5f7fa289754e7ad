"""Loading what a run needs, which stays to its end, and nothing else."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def loading() -> Iterator[None]:
    """Import inside the ``with``: no search for garbage goes through the objects of these modules.

    There are about a million. Where Python ends the process itself it takes them apart as ever, as Triton insists on.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)


def loaded(module: str, name: str) -> Any:
    """Return what a module has under a name; None where nobody has loaded it: nothing is of that type."""
    return getattr(sys.modules.get(module), name, None)
