"""Which image of which file is in which split and at which client: a table in the run folder."""

from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data import Dataset, divide_held_out
from fedsim.data.dataset import Indices
from fedsim.machine.files import csv_text, write_atomic
from fedsim.simulation import Simulation

NAME = "images.csv"
SPLITS = ("train", "val", "test")


def write_members(sim: Simulation, folder: Path) -> None:
    """Write ``images.csv``: a row for every image (volume, text) that is in a split, in the order of their indices.

    ``index`` is what a partition's file calls it. ``client`` is whose training image it is, or on whose own held-out
    images it would be measured; empty for nobody's. ``file``, ``site`` and ``group`` are empty where nothing is known.
    """
    data, count = sim.dataset, len(sim.dataset.labels)
    held_out = divide_held_out(data, sim.config.clients, sim.parts, sim.config.seed)
    split, client = np.full(count, -1), np.full(count, -1)
    for code, name in enumerate(SPLITS):
        split[vars(data)[name]] = code
        if own := sim.parts if name == "train" else held_out.get(name):
            client[np.concatenate(own)] = np.repeat(np.arange(len(own)), [len(part) for part in own])
    index = np.flatnonzero(split >= 0)
    columns = {
        "index": index.tolist(),
        "file": _named(data.file_names, data.pictures_of(index)),
        "split": _named(SPLITS, split[index]),
        "client": ["" if number < 0 else number for number in client[index].tolist()],
        "label": _labels(data, index),
        "site": _numbered(data.site_names, data.sites, index),
        "group": [""] * len(index) if data.groups is None else data.groups[index].tolist(),
    }
    rows = zip(*columns.values(), strict=True)
    write_atomic(folder / NAME, csv_text([list(columns), *rows]).encode())


def _labels(data: Dataset, index: Indices) -> list[Any]:
    """Return classes by their names, numbers to be told, or the findings that are there with a bar between them."""
    if data.targets is None:
        return _named(data.class_names, data.labels.numpy()[index])
    targets = data.targets.numpy()[index]
    if not data.has_findings:
        return list(targets.tolist())
    return ["|".join(name for name, has in zip(data.class_names, own == 1, strict=True) if has) for own in targets]


def _named(names: tuple[str, ...], places: Indices) -> list[str]:
    """Return names by their places; empty texts where there are none."""
    return [names[place] for place in places.tolist()] if names else [""] * len(places)


def _numbered(names: tuple[str, ...], numbers: Indices | None, index: Indices) -> list[str]:
    return [""] * len(index) if numbers is None else _named(names, numbers[index])
