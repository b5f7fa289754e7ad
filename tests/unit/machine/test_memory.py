"""Where glibc puts what is allocated, in a process of its own."""

import platform
import subprocess
import sys

import pytest

from tests.distributed.runs import ROOT

PROGRAM = """
import ctypes
import torch
from fedsim.machine.memory import keep_freed_memory, own_pages

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()

class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Counts

def mapped():
    return libc.mallinfo2().hblkhd >> 20

keep_freed_memory()
before = mapped()
with own_pages():
    lasting = torch.zeros(20 * 2**18)
print(mapped() - before)
passing = torch.zeros(20 * 2**18)
print(mapped() - before)
del lasting
print(mapped() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told where to allocate")
def test_what_lasts_has_pages_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["20", "20", "0"]
