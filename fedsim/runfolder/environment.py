"""The facts about a start that explain its numbers later: versions, hardware, ranks, commit."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fedsim import __version__
from fedsim.comm.group import Group
from fedsim.kernels import build

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "numpy", "timm", "open_clip_torch", "peft", "pydantic", "safetensors", "scikit-learn")


def environment(group: Group) -> dict[str, Any]:
    """Facts about this start as rank 0 sees them, ready for JSON; memory in bytes."""
    return {
        "versions": {"python": platform.python_version(), "fedsim": __version__}
        | {name: _version(name) for name in PACKAGES},
        "hardware": {
            "cpu": _cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        },
        "ranks": group.num_ranks,
        "launcher": group.launcher,
        "backend": group.backend,
        "device": str(group.device),
        "threads_per_rank": torch.get_num_threads(),
        "cpu_kernels": _cpu_kernels(group.device),
        "git": _git_state(),
        "command": sys.argv,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_kernels(device: torch.device) -> str | None:
    """Whether they are compiled, and why not; they are not asked for on a GPU, where nobody needs them."""
    return build.problem() or "compiled" if device.type == "cpu" else None


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _git_state() -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; None where fedsim is installed."""
    if not (ROOT / ".git").exists():  # an environment may lie in the checkout of something else
        return None
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "dirty": bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
