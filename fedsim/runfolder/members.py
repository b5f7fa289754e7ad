"""Which image of which file is in which split and at which client: a table in the run folder."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fedsim.data import Dataset, divide_held_out
from fedsim.data.dataset import Indices
from fedsim.machine.files import replacing
from fedsim.simulation import Simulation

NAME = "images.csv"
SPLITS = ("train", "val", "test")
COLUMNS = ("index", "file", "split", "client", "label", "site", "group")
#: So many rows are in memory as text and numbers of Python.
ROWS_AT_ONCE = 2**16


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
            client[own.images] = own.owners()
    index = np.flatnonzero(split >= 0)
    with replacing(folder / NAME, durable=True) as file:
        _write(file, [COLUMNS])
        for start in range(0, len(index), ROWS_AT_ONCE):
            some = index[start : start + ROWS_AT_ONCE]
            columns = (
                some.tolist(),
                _named(data.file_names, data.pictures_of(some)),
                _named(SPLITS, split[some]),
                ["" if number < 0 else number for number in client[some].tolist()],
                _labels(data, some),
                _numbered(data.site_names, data.sites, some),
                [""] * len(some) if data.groups is None else data.groups[some].tolist(),
            )
            _write(file, zip(*columns, strict=True))


def _write(file: BinaryIO, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows without None and nan, of which there may be millions."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    file.write(text.getvalue().encode())


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
