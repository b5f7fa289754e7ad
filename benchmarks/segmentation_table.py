"""The table in docs/segmentation.md: a ViT-S with LoRA and two decoders beside a U-Net that is trained whole.

    .venv/bin/python -m benchmarks.segmentation_table [--jobs 2] [--root FOLDER]

FedAvg on the four sites of the packaged cells, and on a folder of images and masks per site, three seeds each. The
folder is FOLDER, or tiles of the cells, written as PNG files: 160 of each site, which the reader then splits at random.
Every run is configs/vit_decoder_cells.yaml. One that has finished is not run again, and one that was killed, with this
program or alone, goes on from its last round: start the same command again. Each site's test images are scored by the
server's model after the last round, which with FedAvg is every client's. Bytes are those of all clients in a round.
Writes benchmarks/results/segmentation.json.
"""

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from PIL import Image

import fedsim
from benchmarks.harmofl_table import figures, read
from benchmarks.machine import description
from fedsim.config.data import DataConfig
from fedsim.data import load_dataset

UNET = "{name: 'monai:unet', weights: random, options: {channels: [8, 16, 32, 64], strides: [2, 2, 2], norm: batch}}"
CONTENDERS: dict[str, Sequence[str]] = {
    "ViT-S, LoRA, linear": ["model.decoder={name: linear}"],
    "ViT-S, LoRA, upernet_light": ["model.decoder={name: upernet_light}"],
    "U-Net, trained whole": [f"model={UNET}", "train.lr=0.01", "clients.per_block=1"],
}
SEEDS = (10, 11, 12)
TILES, SIDE = 160, 64
RESULTS = Path(__file__).parent / "results" / "segmentation.json"


def write_tiles(root: Path) -> Path:
    """Write some tiles of the packaged cells as a folder per site, spread evenly over the site's."""
    data = load_dataset(DataConfig(name="cells", image_size=SIDE))
    assert data.sites is not None, "cells have sites"
    assert data.masks is not None, "and masks"
    for site, name in enumerate(data.site_names):
        own = np.flatnonzero(data.sites == site)
        for kind, pixels in (("images", data.images[:, 0]), ("masks", data.masks)):
            folder = root / name / kind
            folder.mkdir(parents=True, exist_ok=True)
            for place in np.linspace(0, len(own) - 1, TILES).round().astype(np.int64):
                Image.fromarray(pixels[own[place]].numpy()).save(folder / f"{own[place]:04d}.png")
    return root


def run(folder: Path, changes: Sequence[str]) -> Path:
    """Train with one thread what has not been trained, and return the run's folder."""
    results = folder / "results.json"
    if not (results.exists() and json.loads(results.read_text())["status"] == "finished"):
        # In a process that ends with this one, however that comes about.
        fedsim.run("configs/vit_decoder_cells.yaml", *changes, out=folder, resume=True, show=len)
    return folder


def row(folder: Path) -> dict[str, Any]:
    """The figures of a run: Dice on the test images, bytes up and down per round, seconds of all rounds."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    average, worst, *sites, server = figures(read(folder, "metrics"), read(folder, "clients"))
    return {
        "dice": [average, worst, *sites, server],
        "bytes_up": mean(own["bytes_up"] for own in metrics),
        "bytes_down": mean(own["bytes_down"] for own in metrics),
        "seconds_of_rounds": sum(own["seconds"] for own in read(folder, "timings")),
    }


def table(sites: Sequence[str], futures: dict[tuple[str, int], Future[Path]]) -> dict[str, list[dict[str, Any]]]:
    """Print a table of all contenders and return their rows."""
    columns = ["mean of the sites", "worst site", *sites, "server's model, all images"]
    print(f"\n| contender | {' | '.join(columns)} | MB up | MB down | seconds |\n|{'---|' * (len(columns) + 4)}")
    found = {}
    for name in CONTENDERS:
        rows = [row(futures[name, seed].result()) for seed in SEEDS]
        cells = [f"{mean(own):.3f} ± {stdev(own):.3f}" for own in zip(*(own["dice"] for own in rows), strict=True)]
        cells += [f"{mean(own[key] for own in rows) / 1e6:.2f}" for key in ("bytes_up", "bytes_down")]
        cells.append(f"{mean(own['seconds_of_rounds'] for own in rows):.0f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        found[name] = rows
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/segmentation_table"), help="folder of the runs")
    parser.add_argument("--root", type=Path, help="folder of images and masks per site in place of tiles of the cells")
    arguments = parser.parse_args()
    root = arguments.root or write_tiles(arguments.out / "tiles")
    folders = sorted(place.name for place in root.iterdir() if place.is_dir())
    nuclei = ["data.name=nuclei", f"data.root={root}", f"clients.count={len(folders)}"]
    sets = {"cells": (("HeLa", "bacteria", "CHO", "DSB2018"), []), "folder": (folders, nuclei)}
    os.environ["OMP_NUM_THREADS"] = "1"
    found = {}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        # Seed by seed, so that what is there after an interruption compares the contenders.
        futures = {
            (data, name, seed): pool.submit(
                run, arguments.out / f"{data}-{name}-{seed}".replace(" ", ""), [f"seed={seed}", *changes, *own]
            )
            for seed in SEEDS
            for data, (_, own) in sets.items()
            for name, changes in CONTENDERS.items()
        }
        try:
            for data, (sites, _) in sets.items():
                found[data] = table(sites, {key[1:]: future for key, future in futures.items() if key[0] == data})
        except KeyboardInterrupt:
            os._exit(130)  # without waiting for the runs, which end with this process
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    RESULTS.write_text(json.dumps({"machine": description(), "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
