"""A table of a million rows: seconds and peak memory of ``launch.py check``.

    python -m benchmarks.own_images.million_rows

Makes 1,000 small images and a Parquet table whose rows name them, with sites, patients and classes, in a folder that is
gone afterwards, runs ``check`` as a program of its own, and prints how long it took and the most memory that it held.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import yaml
from PIL import Image

NUM_CLASSES, NUM_SITES, SIDE = 5, 8, 64
MIB = 2**20


def write_set(folder: Path, num_rows: int, num_files: int, seed: int) -> None:
    """Leave images and ``labels.parquet`` in a folder. A patient has a few files, at one site."""
    stream = np.random.default_rng(seed)
    for number in range(num_files):
        soft = Image.fromarray(stream.integers(0, 256, (6, 6, 3), np.uint8)).resize((SIDE, SIDE))
        soft.save(folder / f"{number:05}.png")
    files = stream.integers(num_files, size=num_rows)
    patients = files // 3
    columns = {
        "path": [f"{number:05}.png" for number in range(num_files)],
        "label": [f"class {number % NUM_CLASSES}" for number in range(num_files)],
        "site": [f"site {number // 3 % NUM_SITES}" for number in range(num_files)],
    }
    table = {name: pa.array(cells).take(pa.array(files)) for name, cells in columns.items()}
    table["patient"] = pa.array(patients)
    pa.parquet.write_table(pa.table(table), folder / "labels.parquet")


def config_of(folder: Path) -> dict[str, object]:
    """Return a small experiment on that table."""
    columns = {"path": "path", "label": "label", "site": "site", "patient": "patient"}
    return {
        "name": "million",
        "rounds": 1,
        "model": {"name": "timm:test_vit", "weights": "random", "train": "all"},
        "data": {"name": "table", "root": str(folder), "file": "labels.parquet", "columns": columns, "image_size": 32},
        "clients": {"count": NUM_SITES, "partition": {"name": "sites"}},
        "train": {"lr": 0.01},
    }


def measure(command: list[str], environment: dict[str, str]) -> tuple[str, str]:
    """Run a program, the first child of this one; return its seconds and most memory, and what it showed."""
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = (
        f"{seconds:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of processors, {used.ru_maxrss * 1024 / MIB:.0f} MiB"
    )
    return cost, done.stdout


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedsim-") as name:
        folder = Path(name) / "set"
        folder.mkdir()
        write_set(folder, options.rows, options.files, options.seed)
        config = Path(name) / "million.yaml"
        config.write_text(yaml.safe_dump(config_of(folder), sort_keys=False))
        environment = os.environ | {"FEDSIM_CACHE": str(Path(name) / "cache")}
        cost, shown = measure([sys.executable, "launch.py", "check", str(config)], environment)
    print(shown)
    print(f"{options.rows:,} rows of {options.files:,} files: check {cost}")


if __name__ == "__main__":
    main()
