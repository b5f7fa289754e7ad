"""Your own images, listed in a table: in each row a file, a class, and perhaps site, patient, client and split.

N rows, D distinct cells of a column, F files.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedsim.config.columns import ColumnsConfig
from fedsim.config.data import DataConfig
from fedsim.config.mistakes import show
from fedsim.data.dataset import Indices, Source
from fedsim.data.datasets.columns import Column, Faults, numbered, read_columns, word_of, words_of
from fedsim.data.datasets.folder import SUFFIXES, names_below, patients_of
from fedsim.data.datasets.text_files import in_order
from fedsim.data.findings import Targets, rarest_findings, target_of
from fedsim.data.folders import is_file, require_file
from fedsim.data.images import prepared_files
from fedsim.data.splits import SPLIT_WORDS, TRAIN
from fedsim.errors import UserError
from fedsim.machine.cache import load_mapped

CLASSES_SHOWN = 12
#: How NIH ChestX-ray14 lists the findings of an image, and what it writes where there is none.
BAR, NOTHING = "|", "No Finding"


class Files(NamedTuple):
    """The files that a table names, ``paths`` (F), each once, and which of them each row names, ``of_row`` (N,)."""

    paths: list[Path]
    of_row: Indices


def table(config: DataConfig) -> Source:
    """Read the table ``file`` in ``root``: CSV or TSV with a header, or Parquet; ``columns`` says what is in which.

    A path is relative to ``root``, or the name alone, with or without its suffix, of an image anywhere below. Classes
    and sites are in alphabetical order, numbers in theirs. A file that several rows name is one image with several
    rows, which stay together. Images of one patient stay together too: told by a column, or by ``data.patient``, a
    regular expression. Drawn splits have each site's classes in proportion.

    UserError for a table that cannot be read, and one for all rows in which something is wrong: their number, the
    first of them with their columns, and what is expected.
    """
    base, columns = config.folder.absolute(), config.columns
    assert columns is not None, "DataConfig asks for them"
    assert config.file is not None, "as above"
    path = base / config.file
    require_file(path, "a table")
    read = read_columns(path, columns.of_table)
    if len(read.numbers) == 0 and len(read.odd) == 0:
        raise UserError(str(path), "no row", "a row for every image")
    faults = Faults(path, read)
    files = _files(base, columns.path, read.by_name[columns.path], faults)
    fixed = _splits(columns, read.by_name, faults)
    class_names, labels, targets = _truths(columns, read.by_name, fixed, faults)
    sites, site_names = _names(columns.site, read.by_name, "a site", faults)
    owners, owner_names = _names(columns.client, read.by_name, "a client", faults)
    patients, num_alone = _patients(columns, read.by_name, faults)
    faults.refuse()
    if len(class_names) < (2 if targets is None else 1):
        raise UserError(
            f"{path}, column {columns.label or columns.listed}", f"{len(class_names)} classes in train", "at least two"
        )
    if config.patient is not None:
        patients = patients_of(config.patient, names_below(base, files.paths))[files.of_row]
    is_shared = len(files.paths) < len(labels)
    remarks = []
    if is_shared:
        remarks.append(f"{len(labels):,} rows name {len(files.paths):,} files; rows of one file stay together")
    if num_alone:
        remarks.append(f"{num_alone:,} rows name no {columns.patient}; each counts as one by itself")
    return Source(
        images=load_mapped(prepared_files("table", _common(files.paths), files.paths, config.image_size, config.fit)),
        labels=labels,
        class_names=class_names,
        groups=_groups(patients, files.of_row if is_shared else None),
        sites=sites,
        site_names=site_names,
        fixed=fixed,
        targets=targets,
        strata=labels if sites is None else sites * (labels.max() + 1) + labels,
        files=(path, *files.paths),
        remarks=tuple(remarks),
        owners=owners,
        owner_names=owner_names,
        pictures=files.of_row if is_shared else None,
        file_names=names_below(base, files.paths),
    )


def _common(paths: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in paths]))


def _files(base: Path, name: str, column: Column, faults: Faults) -> Files:
    """Find the files that the rows name; those that are not there are noted."""
    expected = f"an image file in {base}, each once by its name; a path is relative to it"
    below: Mapping[str, list[Path]] | None = None
    found: dict[str, int] = {}
    wrong: dict[int, str] = {}
    places = np.zeros(len(column.cells), np.int64)
    for code, cell in enumerate(column.cells):
        word, fault = word_of(cell)
        if word is None:
            wrong[code] = fault
            continue
        path = Path(os.path.normpath(base / word))
        if not is_file(path):
            below = _below(base) if below is None else below
            named = below.get(word, [])
            if len(named) != 1:
                several = f"{len(named)} files of the name {show(word)}, such as {' and '.join(map(str, named[:2]))}"
                wrong[code] = several if named else f"no file {show(word)}"
                continue
            path = named[0]
        places[code] = found.setdefault(str(path), len(found))
    faults.add_cells(name, column, wrong, expected)
    return Files(list(map(Path, found)), places[column.codes])


def _below(base: Path) -> dict[str, list[Path]]:
    """Return the image files in all folders below ``base`` by their names, with and without suffix."""
    found: dict[str, list[Path]] = {}
    for folder, _, names in os.walk(base):
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)  # noqa: PTH122  # a path for each of a million names takes seconds
            if suffix.lower() in SUFFIXES and name[0] != ".":
                path = Path(folder, name)
                found.setdefault(name, []).append(path)
                found.setdefault(stem, []).append(path)
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
    columns: ColumnsConfig, cells: Mapping[str, Column], fixed: Indices | None, faults: Faults
) -> tuple[tuple[str, ...], Indices, Targets | None]:
    """Return the classes with the rows' labels (N,), or the findings with the rows' targets (N, F) beside them."""
    if columns.label is not None:
        return *_classes(columns, cells, fixed, faults), None
    names, targets = _findings(columns, cells, faults) if columns.findings else _listed(columns, cells, faults)
    return names, rarest_findings(targets), targets


def _findings(columns: ColumnsConfig, cells: Mapping[str, Column], faults: Faults) -> tuple[tuple[str, ...], Targets]:
    """Return the findings that have a column each, and the rows' targets (N, F)."""
    assert columns.findings is not None, "_truths looks at this"
    found = []
    for name in columns.findings:
        values = [target_of(cell, columns.unsure, columns.blank) for cell in cells[name].cells]
        wrong = {place: show(cells[name].cells[place]) for place, value in enumerate(values) if value is None}
        faults.add_cells(name, cells[name], wrong, "1, 0, -1 where it is not sure, or nothing")
        found.append(np.array([value or 0 for value in values], np.float32)[cells[name].codes])
    return columns.findings, np.stack(found, 1)


def _listed(columns: ColumnsConfig, cells: Mapping[str, Column], faults: Faults) -> tuple[tuple[str, ...], Targets]:
    """Return the findings that a column lists, as NIH's table does, and the rows' targets (N, F)."""
    assert columns.listed is not None, "one of the targets is given"
    column = cells[columns.listed]
    words = words_of(columns.listed, column, faults, f"findings with {BAR} between them, or {NOTHING}")
    lists = [{part.strip() for part in (word or "").split(BAR)} - {"", NOTHING} for word in words]
    names = tuple(sorted(set().union(*lists)))
    of_cell = np.array([[name in own for name in names] for own in lists], np.float32).reshape(len(lists), len(names))
    return names, of_cell[column.codes]


def _classes(
    columns: ColumnsConfig, cells: Mapping[str, Column], fixed: Indices | None, faults: Faults
) -> tuple[tuple[str, ...], Indices]:
    """Return the classes of the training rows, and the rows' labels (N,); a class that train lacks is noted."""
    assert columns.label is not None, "a table has no score"
    column = cells[columns.label]
    words = words_of(columns.label, column, faults, "a class: a text or a whole number")
    trained = np.ones(len(column.codes), np.bool_) if fixed is None else fixed == TRAIN
    is_trained = np.bincount(column.codes[trained], minlength=len(words)) > 0
    names = in_order({word for word, is_one in zip(words, is_trained, strict=True) if is_one and word is not None})
    shown = ", ".join(names[:CLASSES_SHOWN]) + (" ..." if len(names) > CLASSES_SHOWN else "")
    known = {*names, None}
    lacking = {code: show(word) for code, word in enumerate(words) if word not in known}
    faults.add_cells(columns.label, column, lacking, f"a class of train: {shown}")
    return names, numbered(column, [None if code in lacking else word for code, word in enumerate(words)], names)


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


def _groups(patients: Indices | None, files: Indices | None) -> Indices | None:
    """Return what belongs together (N,): rows of one patient or of one file, and what both connect."""
    if patients is None or files is None:
        return patients if files is None else files
    from scipy.sparse import coo_array  # type: ignore[import-untyped]  # late: few runs need it; scipy has no types
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]  # as above

    num_files = int(files.max()) + 1
    pairs = np.unique(patients * num_files + files)
    size = num_files + int(patients.max()) + 1
    ends = (pairs % num_files, num_files + pairs // num_files)
    links = coo_array((np.ones(len(pairs), np.bool_), ends), shape=(size, size))
    _, clusters = connected_components(links, directed=False)
    return np.asarray(clusters, np.int64)[files]
