"""How this process deals with host memory."""

import ctypes
import platform

# Names and values of glibc's mallopt; 32 MiB is the largest threshold that it takes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT_BYTES = 32 * 2**20
KEPT_BYTES = 256 * 2**20


def keep_freed_memory() -> None:
    """Let glibc keep up to 256 MiB of freed memory: a step frees and asks for the same sizes again and again.

    Given back to the system and taken anew, every 4 KiB page costs a fault (benchmarks/LOG.md). Other C libraries
    stay as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
