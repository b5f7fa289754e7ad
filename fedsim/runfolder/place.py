"""Where a run is left whose user names no folder."""

import os
from pathlib import Path


def default_folder(name: str) -> Path:
    """Return runs/NAME; in a job array of SLURM runs/NAME_INDEX, since its tasks have one config's name."""
    index = os.environ.get("SLURM_ARRAY_TASK_ID")
    return Path("runs") / (name if index is None else f"{name}_{index}")
