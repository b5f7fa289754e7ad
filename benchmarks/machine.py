"""The machine's limit: its rate of matrix products, and what is needed to read a number measured on it.

    python -m benchmarks.machine            # prints JSON

Rates are floating-point operations per second of square products (a multiply and an add are two), the best
of several sizes, in one process with 1 thread, one with all threads, and one process per core at once.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SIZES = {"cpu": (768, 1536, 2304), "cuda": (4096, 8192, 12288)}
PACKAGES = ("torch", "timm", "numpy", "pfl", "flwr", "ray", "blazefl")


def own_device() -> str:
    """Return where fedsim computes here: on a GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def matrix_rate(device: str, precision: str, threads: int, seconds: float) -> float:
    """Operations per second of this process alone: the fastest product seen within ``seconds`` per size."""
    import torch

    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    rate = 0.0
    for size in SIZES[device]:
        left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
        result = left @ right
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            _synchronize(device)
            start = time.perf_counter()
            torch.matmul(left, right, out=result)
            _synchronize(device)
            rate = max(rate, 2 * size**3 / (time.perf_counter() - start))
    return rate


def _synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def rates(device: str, precision: str, seconds: float) -> dict[str, float]:
    """Summed rates under "<processes>x<threads>", the processes of a setting running at once."""
    cores = len(os.sched_getaffinity(0))
    settings = [(1, 1)] if device == "cuda" else sorted({(1, 1), (1, cores), (cores, 1)})
    return {
        f"{processes}x{threads}": _summed_rate(device, precision, processes, threads, seconds)
        for processes, threads in settings
    }


def _summed_rate(device: str, precision: str, processes: int, threads: int, seconds: float) -> float:
    options = ["--device", device, "--precision", precision, "--threads", str(threads)]
    command = [sys.executable, "-m", "benchmarks.machine", "--one", *options, "--seconds", str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    workers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    outputs = [worker.communicate()[0] for worker in workers]
    for worker in workers:
        if worker.returncode != 0:
            raise SystemExit(f"matrix rate, {precision}: a worker ended with exit code {worker.returncode}")
    return sum(float(output) for output in outputs)


def description() -> dict[str, Any]:
    """Hardware, package versions of this interpreter, and the commit ("+": files differ from it)."""
    cpu_lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in cpu_lines if ":" in line)
    cpu = {name.strip(): value.strip() for name, value in fields.items()}
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "cpu_bf16": sorted({"avx512_bf16", "amx_bf16"}.intersection(flags)),
        "gpu": gpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": os.getloadavg()[0],
        "platform": platform.platform(),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | package_versions(),
    }


def gpu_name() -> str | None:
    """Return what the first GPU is called."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def package_versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # fedsim's environment has no peers, and theirs need not have all
            continue
    return found


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=SIZES, default="cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each size of matrix")
    parser.add_argument("--one", action="store_true", help="print the rate of this process alone")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="with --one")
    parser.add_argument("--threads", type=int, default=1, help="with --one")
    arguments = parser.parse_args()
    if arguments.one:
        print(matrix_rate(arguments.device, arguments.precision, arguments.threads, arguments.seconds))
        return
    measured = {precision: rates(arguments.device, precision, arguments.seconds) for precision in ("fp32", "bf16")}
    print(json.dumps(description() | {"matrix_flops_per_s": measured}, indent=1))


if __name__ == "__main__":
    main()
