"""The facts about a start that explain its numbers later: versions, hardware, ranks, commit."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fedsim import __version__
from fedsim.comm.group import Group
from fedsim.data import Dataset
from fedsim.errors import UserError
from fedsim.kernels import build
from fedsim.machine.files import write_json
from fedsim.models.tower import Encoder

ROOT = Path(__file__).resolve().parents[2]
#: What tells a run's frozen weights from others.
FROZEN = "frozen_sha256"
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


def write_environment(path: Path, facts: dict[str, Any]) -> None:
    """Write the facts about this start, and keep those about earlier ones; UserError where those cannot be read."""
    if path.exists():
        facts["earlier_starts"] = _read_starts(path)
    write_json(path, facts)


def _read_starts(path: Path) -> list[dict[str, Any]]:
    """Return the facts about the starts so far."""
    try:
        last = json.loads(path.read_bytes())
        starts = [*last.pop("earlier_starts", []), last]
        for key in ("data_files", "data_arrays"):
            if not all(isinstance(start.get(key) or {}, dict) for start in starts):
                raise TypeError(f"{key} is no object")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        expected = "the facts about earlier starts; remove the file to go on without them"
        raise UserError(str(path), f"no readable JSON object ({error})", expected) from None
    return starts


def note_inputs(path: Path, dataset: Dataset, encoder: Encoder, say: Callable[[str], object]) -> None:
    """Add digests of data and frozen weights to the facts about this start, and say what the reader remarks.

    UserError where an earlier start had data or weights of other content.
    """
    facts = json.loads(path.read_text())
    facts |= {"data_files": dataset.files, "data_arrays": dataset.arrays, FROZEN: encoder.frozen_sha256}
    require_frozen(facts.get("earlier_starts", []), encoder, path)
    for start in facts.get("earlier_starts", []):
        for key in ("data_files", "data_arrays"):
            before, now = (value.get(key) or {} for value in (start, facts))
            if before.get("sha256") not in (None, now.get("sha256")):
                found, expected = (
                    f"{one.get('files', '')} {key[5:]}, sha256 {one.get('sha256')}" for one in (now, before)
                )
                raise UserError(f"--resume: data {dataset.name}", found.strip(), f"{expected.strip()}, as in {path}")
    write_json(path, facts)
    for remark in dataset.remarks:
        say(f"data: {remark}")


def require_same_network(folder: Path, encoder: Encoder) -> None:
    """UserError where the run in a folder was made with other frozen weights than the encoder has."""
    path = folder / "environment.json"
    if path.exists():
        require_frozen(_read_starts(path), encoder, path)


def require_frozen(starts: Sequence[Mapping[str, Any]], encoder: Encoder, path: Path) -> None:
    """UserError where one of the starts had other frozen weights; ``path``: where the facts about them stand."""
    now = encoder.frozen_sha256
    for before in (start.get(FROZEN) for start in starts):
        if now is not None and before not in (None, now):
            raise UserError("model", f"other frozen weights, sha256 {now}", f"{before}, as in {path}")


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
