"""Camelyon17's lymph node patches of five hospitals, tumour or none: HarmoFL's table of them and that of WILDS."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.config.data import DataConfig
from fedsim.config.mistakes import show
from fedsim.data.dataset import Indices, Source
from fedsim.data.datasets.folder import names_below
from fedsim.data.datasets.pickled import read_plain
from fedsim.data.datasets.tables import csv_rows
from fedsim.data.folders import require_file
from fedsim.data.images import prepared_files
from fedsim.data.splits import NAMES, TEST, TRAIN, VAL
from fedsim.errors import UserError, reading
from fedsim.machine.cache import load_mapped

CLASS_NAMES = ("no tumour", "tumour")
VAL_SHARE = 0.2
PICKLED = '{"hospital1": {"train": (paths, labels), "test": (paths, labels)}, "hospital2": ...}'
COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "center")
MIN_PATIENTS = 3
NUMBER = re.compile("[0-9]{1,9}")


def camelyon17(config: DataConfig) -> Source:
    """Read HarmoFL's ``root/data.pkl``, which names patches under ``root`` by hospital and split.

    As released, the last fifth of a hospital's training patches, in the order of the file, is for validation. UserError
    for a pickle with more in it than containers, strings, numbers and arrays of these, and for a patch that is missing.
    """
    base = config.folder
    table = _read_pickle(base / "data.pkl")
    paths: list[Path] = []
    labels, fixed, sites = [], [], []
    for site, hospital in enumerate(sorted(table)):
        for part, code in (("train", TRAIN), ("test", TEST)):
            names, own = _patches(f"{base / 'data.pkl'} {hospital} {part}", table[hospital], part)
            splits = np.full(len(names), code)
            if code == TRAIN:
                splits[len(names) - int(VAL_SHARE * len(names)) :] = VAL
            paths += [base / name for name in names]
            labels.append(own)
            fixed.append(splits)
            sites.append(np.full(len(names), site))
    label, split, site_of = (np.concatenate(values) for values in (labels, fixed, sites))
    return _source(
        "camelyon17", base / "data.pkl", config.image_size, paths, label, split, site_of, tuple(sorted(table))
    )


def wilds_camelyon17(config: DataConfig) -> Source:
    """Read ``root/metadata.csv`` and the patches it names as WILDS 1.0 publishes them.

    The hospitals are the column ``center``. Patches of a patient look alike, so whole patients are set aside: of each
    hospital's, in the order of their numbers, the last fifth is for the test and the fifth before it for validation,
    one patient at least. The table's own column ``split``, which divides single patches, is not used.
    """
    base = config.folder
    rows = _read_rows(base / "metadata.csv")
    paths = []
    for row in rows:
        slide = f"patient_{row['patient'].zfill(3)}_node_{row['node']}"
        name = f"patch_{slide}_x_{row['x_coord']}_y_{row['y_coord']}.png"
        paths.append(base / "patches" / slide / name)
    patients, centers, labels = (np.array([int(row[key]) for row in rows]) for key in ("patient", "center", "tumor"))
    names, sites = np.unique(centers, return_inverse=True)
    fixed = np.full(len(rows), TRAIN)
    for site, center in enumerate(names):
        own = np.unique(patients[sites == site])
        if len(own) < MIN_PATIENTS:
            where = f"{base / 'metadata.csv'} center {center}"
            raise UserError(where, f"{len(own)} patients", f"{MIN_PATIENTS}, one for each of {', '.join(NAMES)}")
        num_held = max(1, len(own) // 5)
        for code, held in ((TEST, own[-num_held:]), (VAL, own[-2 * num_held : -num_held])):
            fixed[(sites == site) & np.isin(patients, held)] = code
    site_names = tuple(f"hospital {center}" for center in names)
    return _source(
        "wilds_camelyon17", base / "metadata.csv", config.image_size, paths, labels, fixed, sites, site_names
    )


def _source(
    name: str,
    table: Path,
    image_size: int,
    paths: list[Path],
    labels: Indices,
    fixed: Indices,
    sites: Indices,
    site_names: tuple[str, ...],
) -> Source:
    for path in paths:
        require_file(path, f"a patch of {name}")
    return Source(
        images=load_mapped(prepared_files(name, table.parent, paths, image_size)),
        labels=labels,
        class_names=CLASS_NAMES,
        sites=sites,
        site_names=site_names,
        fixed=fixed,
        strata=sites * len(CLASS_NAMES) + labels,
        files=(table, *paths),
        file_names=names_below(table.parent, paths),
    )


def _read_pickle(path: Path) -> dict[str, Any]:
    """Return the hospitals of data.pkl."""
    require_file(path, "HarmoFL's data.pkl")
    with reading(str(path), "a pickle of containers, strings, numbers, arrays of these"):
        table = read_plain(path)
    if not isinstance(table, dict) or not table:
        raise UserError(str(path), "another content", PICKLED)
    return table


def _patches(where: str, hospital: Any, part: str) -> tuple[list[str], Indices]:
    """Return the paths and labels of one part of a hospital."""
    try:
        paths, labels = hospital[part]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(where, "another content", PICKLED) from error
    if not all(isinstance(values, list | tuple) for values in (paths, labels)):
        raise UserError(where, "another content", PICKLED)
    if len(paths) == 0:
        raise UserError(where, "no image", "one or more")
    if len(paths) != len(labels) or not all(label in (0, 1) for label in labels):
        raise UserError(where, f"{len(paths)} paths with {len(labels)} labels", "a label 0 or 1 for every path")
    for path in paths:
        if not isinstance(path, str) or not path.isprintable() or Path(path).is_absolute() or ".." in Path(path).parts:
            raise UserError(where, f"the path {show(path)}", "paths inside data.root")
    return list(paths), np.array(labels).astype(np.int64)


def _read_rows(path: Path) -> Sequence[Mapping[str, str]]:
    """Return the rows of metadata.csv, whose columns of use are whole numbers."""
    rows = csv_rows(path, "the table of WILDS")
    for number, row in enumerate(rows, start=2):
        for column in COLUMNS:
            value = row.get(column) or ""
            if not NUMBER.fullmatch(value) or (column == "tumor" and int(value) >= len(CLASS_NAMES)):
                raise UserError(f"{path} line {number}", f"{column} {show(value)}", "a whole number, and tumor 0 or 1")
    if not rows:
        raise UserError(str(path), "no row", "a row for every patch")
    return rows
