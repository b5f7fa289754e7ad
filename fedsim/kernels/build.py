"""Compiles the C++ sources beside this file when they are first needed, and calls them.

There is one library for fp32 and one for bf16, kept in the cache, where every user has their own. Where that is not
possible, ``problem`` says why, and everyone uses PyTorch's own operators instead, which are slower; the numbers differ
in rounding.
"""

import ctypes
import os
import platform
import shlex
import subprocess
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fedsim.errors import UserError
from fedsim.kernels import seal
from fedsim.machine.cache import cached_folder

SOURCES = Path(__file__).parent
# The symbols of OpenMP are left open: they are found in the runtime that PyTorch has loaded, whose threads are shared.
COMPILE = (
    "-std=c++17 -O3 -march=native -ffp-contract=fast -fno-math-errno -fno-trapping-math -fno-strict-aliasing "
    "-fopenmp -fPIC"
)
DEFINES = {torch.float32: "-DFP32", torch.bfloat16: "-DBF16"}


class _UnavailableError(Exception):
    """The kernels cannot be compiled or loaded; the message says why."""


def available(dtype: torch.dtype) -> bool:
    """Whether ``call`` has functions for this type."""
    return dtype in DEFINES and problem() is None


@cache
def problem() -> str | None:
    """Why there are no kernels on this machine; None where there are."""
    try:
        for dtype in DEFINES:
            _load(dtype)
    except _UnavailableError as error:
        return str(error)
    return None


def call(name: str, dtype: torch.dtype, *arguments: Tensor | int | float | None) -> None:
    """Call a function of the library for this type, with this process's number of threads as its last argument.

    Tensors are handed over by their address, so their layout is the caller's business; an int is C++'s long.
    """
    getattr(_load(dtype), name)(*map(_as_c, arguments), ctypes.c_long(torch.get_num_threads()))


@cache
def _load(dtype: torch.dtype) -> ctypes.CDLL:
    compiler = _compiler()
    sources = sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")])
    key = [
        shlex.join(compiler),
        _run([*compiler, "--version"]),
        _processor(),
        COMPILE,
        DEFINES[dtype],
        *(source.read_text() for source in sources),
    ]

    def build(folder: Path) -> None:
        objects = []
        for source in sources:
            if source.suffix == ".cpp":
                objects.append(f"{folder / source.stem}.o")
                _run([*compiler, *COMPILE.split(), DEFINES[dtype], "-c", str(source), "-o", objects[-1]])
        _run([*compiler, "-shared", *objects, "-o", str(folder / seal.LIBRARY)])
        seal.seal(folder, key)

    try:
        folder = cached_folder(
            f"kernels-{os.geteuid()}", key, build, lambda folder: seal.is_sealed(folder, key), seal.PRIVATE
        )
        return seal.load(folder, key)
    except UserError as error:
        raise _UnavailableError(str(error)) from error


def _compiler() -> list[str]:
    """The command of CXX, which may have options."""
    text = os.environ.get("CXX", "c++")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise _UnavailableError(f"CXX={text}: {error}") from error
    if not words:
        raise _UnavailableError("CXX names no compiler")
    return words


def _as_c(argument: Tensor | int | float | None) -> object:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, int):
        return ctypes.c_long(argument)
    return argument if argument is None else ctypes.c_float(argument)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise _UnavailableError(f"no C++ compiler: {command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise _UnavailableError(
            f"{shlex.join(command)}: {next((line for line in lines if 'error' in line), lines[-1])}"
        )
    return done.stdout


def _processor() -> str:
    """What ``-march=native`` depends on: folders of the cache may be shared by different machines."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    wanted = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in info.read_text().splitlines() if line.startswith(wanted)}))
