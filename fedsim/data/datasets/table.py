"""Your own images, listed in a table: in each row a file, a class, and perhaps site, patient, client and split.

N rows, D distinct cells of a column, F files.
"""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedsim.config.columns import ColumnsConfig
from fedsim.config.data import DataConfig
from fedsim.config.mistakes import show
from fedsim.data.dataset import Indices, Source
from fedsim.data.datasets.columns import Column, Faults, numbered, read_tables, word_of, words_of
from fedsim.data.datasets.folder import SUFFIXES, names_below, patients_of
from fedsim.data.datasets.text_files import in_order
from fedsim.data.datasets.volume_files import VOLUME, prepared_volumes
from fedsim.data.findings import (
    BAR,
    EXPECTED,
    NOTHING,
    Targets,
    listed_in,
    rarest_findings,
    targets_of_cells,
    targets_of_listed,
)
from fedsim.data.folders import require_file, walked
from fedsim.data.numbering import connected
from fedsim.data.splits import SPLIT_WORDS, TRAIN
from fedsim.data.windowed import prepared
from fedsim.errors import UserError
from fedsim.machine.cache import load_mapped

CLASSES_SHOWN = 12
GRADE = re.compile("[-+]?[0-9]+")


class Files(NamedTuple):
    """The files that a table names, ``paths`` (F), each once, and which of them each row names, ``of_row`` (N,)."""

    paths: list[Path]
    of_row: Indices


def table(config: DataConfig) -> Source:
    """Read the table ``file`` in ``root``: CSV or TSV with a header, or Parquet; ``columns`` says what is in which.

    Several tables are one for each split, with the same columns. A path is relative to ``root``, whole, or the name
    alone, with or without its suffix, of an image anywhere below; it may lead anywhere, as its table is the user's own.
    Classes and sites are in alphabetical order, numbers in theirs. A file that several rows name, by whatever name, is
    one image with several rows, which stay together. Images of one patient stay together too: told by a column, or by
    ``data.patient``, a regular expression. Drawn splits have each site's classes in proportion. With ``data.slices``
    files are volumes.

    UserError for a table that cannot be read, and one for all rows in which something is wrong: their number, the
    first of them with their columns, and what is expected.
    """
    base, columns = config.folder.absolute(), config.columns
    assert columns is not None, "DataConfig asks for them"
    assert config.file is not None, "as above"
    tables = _tables(base, config.file)
    read, of_table = read_tables(list(tables), columns.of_table)
    faults = Faults(list(tables), read)
    suffixes = SUFFIXES if config.slices is None else (VOLUME,)
    files = _files(base, columns.path, read.by_name[columns.path], suffixes, faults)
    fixed = _splits(columns, read.by_name, faults)
    if isinstance(config.file, Mapping):
        fixed = np.array(list(tables.values()), np.int64)[of_table]
    class_names, labels, targets = _truths(config, read.by_name, fixed, faults)
    sites, site_names = _names(columns.site, read.by_name, "a site", faults)
    owners, owner_names = _names(columns.client, read.by_name, "a client", faults)
    patients, num_alone = _patients(columns, read.by_name, faults)
    faults.refuse()
    if config.classes is None and len(class_names) < (2 if targets is None else 1):
        where = f"{', '.join(map(str, tables))}, column {columns.label or columns.listed}"
        raise UserError(where, f"{len(class_names)} classes in train", "at least two")
    if columns.graded and config.classes is None:
        _check_grades(f"{', '.join(map(str, tables))}, column {columns.label}", class_names)
    if config.patient is not None:
        patients = patients_of(config.patient, names_below(base, files.paths))[files.of_row]
    is_shared = len(files.paths) < len(labels)
    remarks = []
    if is_shared:
        remarks.append(f"{len(labels):,} rows name {len(files.paths):,} files; rows of one file stay together")
    if num_alone:
        remarks.append(f"{num_alone:,} rows name no {columns.patient}; each counts as one by itself")
    return Source(
        images=load_mapped(_prepared(files.paths, config)),
        labels=labels,
        class_names=class_names,
        groups=connected(patients, files.of_row if is_shared else None),
        sites=sites,
        site_names=site_names,
        fixed=fixed,
        targets=targets,
        strata=labels if sites is None else sites * (labels.max() + 1) + labels,
        files=(*tables, *files.paths),
        remarks=tuple(remarks),
        is_graded=columns.graded,
        owners=owners,
        owner_names=owner_names,
        pictures=files.of_row if is_shared else None,
        file_names=names_below(base, files.paths),
    )


def _tables(base: Path, file: str | Mapping[Any, str]) -> dict[Path, int]:
    """Return the tables with their splits; a single one has those that a column says, or none."""
    named = {"train": file} if isinstance(file, str) else file
    tables = {base / name: SPLIT_WORDS[split] for split, name in named.items()}
    if len(tables) < len(named):
        raise UserError("data.file", show(file), "each table once")
    for path in tables:
        require_file(path, "a table")
    return tables


def _prepared(paths: Sequence[Path], config: DataConfig) -> Path:
    """Return the file with the pictures, or with volumes where the config says how many slices these have."""
    common = Path(os.path.commonpath([path.parent for path in paths]))
    if config.slices is None:
        return prepared("table", common, paths, config)
    return prepared_volumes("table", common, paths, config.image_size, config.fit, config.slices)


def _files(base: Path, name: str, column: Column, suffixes: Sequence[str], faults: Faults) -> Files:
    """Find the files that the rows name, each once whatever it is called; those that are not there are noted."""
    expected = f"an image file in {base}, each once by its name; a path is relative to it, or begins with /"
    below: Mapping[str, list[Path]] | None = None
    paths: list[Path] = []
    known: dict[tuple[int, int], int] = {}
    wrong: dict[int, str] = {}
    places = np.zeros(len(column.cells), np.int64)
    for code, cell in enumerate(column.cells):
        word, fault = word_of(cell)
        if word is None:
            wrong[code] = fault
            continue
        path = Path(os.path.normpath(base / word))
        identity = _identity(path)
        if identity is None:
            below = _below(base, suffixes) if below is None else below
            named = below.get(word, [])
            several = {_identity(one) for one in named}  # a link to a folder below is a second way to the same files
            identity = several.pop() if len(several) == 1 else None
            if identity is None:
                both = f"{len(named)} files of the name {show(word)}, such as {' and '.join(map(str, named[:2]))}"
                wrong[code] = both if len(named) > 1 else f"no file {show(word)}"
                continue
            path = named[0]
        place = known.setdefault(identity, len(paths))
        if place == len(paths):
            paths.append(path)
        places[code] = place
    faults.add_cells(name, column, wrong, expected)
    return Files(paths, places[column.codes])


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a regular file from others, also by a link's name; None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def _below(base: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """Return the files with such suffixes in all folders below ``base`` by their names, with and without suffix."""
    found: dict[str, list[Path]] = {}
    for path in walked(base):
        if path.suffix.lower() in suffixes:
            found.setdefault(path.name, []).append(path)
            found.setdefault(path.stem, []).append(path)
    return found


def _splits(columns: ColumnsConfig, cells: Mapping[str, Column], faults: Faults) -> Indices | None:
    """Return the rows' splits (N,); None without a column of them."""
    if columns.split is None:
        return None
    column, expected = cells[columns.split], f"one of {', '.join(SPLIT_WORDS)}"
    words = words_of(columns.split, column, faults, expected)
    codes = [TRAIN if word is None else SPLIT_WORDS.get(word.lower(), -1) for word in words]
    wrong = {place: show(word) for place, (word, code) in enumerate(zip(words, codes, strict=True)) if code < 0}
    faults.add_cells(columns.split, column, wrong, expected)
    return np.array(codes, np.int64)[column.codes]


def _truths(
    config: DataConfig, cells: Mapping[str, Column], fixed: Indices | None, faults: Faults
) -> tuple[tuple[str, ...], Indices, Targets | None]:
    """Return the classes with the rows' labels (N,), or the findings with the rows' targets (N, F) beside them."""
    columns, known = config.columns, config.classes
    assert columns is not None, "DataConfig asks for them"
    if columns.label is not None:
        return *_classes(columns.label, known, cells, fixed, faults), None
    if columns.listed is not None:
        names, targets = _listed(columns.listed, known, cells, faults)
    else:
        names, targets = _findings(columns, cells, faults)
    return names, rarest_findings(targets), targets


def _findings(columns: ColumnsConfig, cells: Mapping[str, Column], faults: Faults) -> tuple[tuple[str, ...], Targets]:
    """Return the findings that have a column each, and the rows' targets (N, F)."""
    assert columns.findings is not None, "_truths looks at this"
    found = []
    for name in columns.findings:
        column = cells[name]
        targets, wrong = targets_of_cells(column.cells, columns.unsure, columns.blank)
        faults.add_cells(name, column, {place: show(column.cells[place]) for place in wrong}, EXPECTED)
        found.append(targets[column.codes])
    return columns.findings, np.stack(found, 1)


def _listed(
    name: str, known: tuple[str, ...] | None, cells: Mapping[str, Column], faults: Faults
) -> tuple[tuple[str, ...], Targets]:
    """Return the findings that a column lists, as NIH's table does, and the rows' targets (N, F)."""
    column = cells[name]
    words = words_of(name, column, faults, f"findings with {BAR} between them, or {NOTHING}")
    lists = [listed_in(word or "") for word in words]
    names = known or tuple(sorted(set().union(*lists)))
    lacking = {code: show(words[code]) for code, own in enumerate(lists) if not set(own) <= {*names}}
    faults.add_cells(name, column, lacking, f"findings of data.classes: {_shown(names)}")
    of_cell = targets_of_listed([[] if code in lacking else own for code, own in enumerate(lists)], names)
    return names, of_cell[column.codes]


def _classes(
    name: str, known: tuple[str, ...] | None, cells: Mapping[str, Column], fixed: Indices | None, faults: Faults
) -> tuple[tuple[str, ...], Indices]:
    """Return the ``known`` classes, or those of the training rows, and the rows' labels (N,); others are noted."""
    column = cells[name]
    words = words_of(name, column, faults, "a class: a text or a whole number")
    trained = np.ones(len(column.codes), np.bool_) if fixed is None else fixed == TRAIN
    is_trained = np.bincount(column.codes[trained], minlength=len(words)) > 0
    own = {word for word, is_one in zip(words, is_trained, strict=True) if is_one and word is not None}
    names = known or in_order(own)
    taken = {*names, None}
    lacking = {code: show(word) for code, word in enumerate(words) if word not in taken}
    faults.add_cells(
        name, column, lacking, f"a class of {'train' if known is None else 'data.classes'}: {_shown(names)}"
    )
    return names, numbered(column, [None if code in lacking else word for code, word in enumerate(words)], names)


def _check_grades(where: str, names: Sequence[str]) -> None:
    """UserError for a grade that is no whole number: in which order such ones come cannot be told."""
    odd = [name for name in names if not GRADE.fullmatch(name)]
    if odd:
        raise UserError(where, f"the grade {show(odd[0])}", "whole numbers, or data.classes from the lowest grade up")


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:CLASSES_SHOWN]) + (" ..." if len(names) > CLASSES_SHOWN else "")


def _names(
    name: str | None, cells: Mapping[str, Column], expected: str, faults: Faults
) -> tuple[Indices | None, tuple[str, ...]]:
    """Return the rows' places (N,) among the names in a column, and these; None and nothing without a column."""
    if name is None:
        return None, ()
    words = words_of(name, cells[name], faults, f"{expected}: a text or a whole number")
    names = in_order({word for word in words if word is not None})
    return numbered(cells[name], words, names), names


def _patients(columns: ColumnsConfig, cells: Mapping[str, Column], faults: Faults) -> tuple[Indices | None, int]:
    """Return the rows' patients (N,) as numbers, and how many rows name none, each of which is one by itself."""
    if columns.patient is None:
        return None, 0
    column = cells[columns.patient]
    words = words_of(columns.patient, column, faults, "a patient: a text or a whole number", may_be_empty=True)
    patients = numbered(column, words, in_order({word for word in words if word is not None}))
    alone = np.flatnonzero(patients < 0)
    patients[alone] = len(words) + np.arange(len(alone))
    return patients, len(alone)
