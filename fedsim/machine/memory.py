"""How this process deals with host memory."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Names and values of glibc's mallopt; 32 MiB is the largest threshold that it takes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT_BYTES = 32 * 2**20
KEPT_BYTES = 256 * 2**20
SMALLEST_MAPPED_BYTES = 2**16


def keep_freed_memory() -> None:
    """Let glibc keep up to 256 MiB of freed memory: a step frees and asks for the same sizes again and again.

    Given back to the system and taken anew, every 4 KiB page costs a fault (benchmarks/LOG.md). Other C libraries
    stay as they are.
    """
    _set(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
    _set(M_TRIM_THRESHOLD, KEPT_BYTES)


@contextmanager
def own_pages() -> Iterator[None]:
    """Give what is allocated meanwhile pages of its own, which go back to the system with it.

    The heap, which keeps what is freed in it, is then left to the activations. Not to be used within itself.
    """
    _set(M_MMAP_THRESHOLD, SMALLEST_MAPPED_BYTES)
    try:
        yield
    finally:
        _set(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)


def _set(parameter: int, value: int) -> None:
    if is_glibc():
        ctypes.CDLL(None).mallopt(parameter, value)


@cache
def is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
