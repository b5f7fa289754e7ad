"""Tables of texts on disk: your own."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from fedsim.config.columns import OF_IMAGES, ColumnsConfig
from fedsim.config.data import DataConfig
from fedsim.config.mistakes import show
from fedsim.data.dataset import Indices, Source, Texts
from fedsim.data.datasets.tables import SUFFIXES, Row, read_table
from fedsim.data.folders import files_with
from fedsim.data.splits import SPLIT_WORDS, TRAIN
from fedsim.errors import UserError

LAYOUT = f"tables {{train,validation,test}}*{{{','.join(SUFFIXES)}}}"
LARGEST = float(np.finfo(np.float32).max)
PLAIN_NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?")
MAX_DIGITS = 18


def text_files(config: DataConfig) -> Source:
    """Read the tables directly in a folder: TSV or CSV with a header, JSON lines, parquet, arrow as datasets writes it.

    The split is that of ``columns.split``, else that of a word in the file's name (train, validation, val, dev, test),
    else train. UserError for a missing folder, table or column, a row with too few or too many cells, an empty or
    strange cell, and a class that train lacks.
    """
    folder, columns = config.folder, config.columns
    assert columns is not None, "DataConfig asks for them"
    files = tables(folder)
    if not files:
        raise UserError(f"data.root {folder}", "no table", LAYOUT)
    wanted = [name for name in columns.model_dump(exclude=set(OF_IMAGES)).values() if name is not None]
    rows: list[Row] = []
    fixed: list[int] = []
    for file in files:
        table = read_table(file, wanted)
        if table.odd:
            raise UserError(f"{file} row {table.odd[0]}", "another number of cells", "as many as the header has")
        rows += table.rows
        fixed += [split_of_name(file)] * len(table.rows)
    if columns.split is not None:
        fixed = [_split_of_cell(row, columns.split) for row in rows]
    return source_of(rows, fixed, columns, files)


def tables(folder: Path) -> list[Path]:
    """Return the tables directly in a folder, by name; none where there is no folder."""
    return files_with(folder, SUFFIXES) if folder.is_dir() else []


def words_of(path: Path) -> set[str]:
    """Return the words of a file's name, in lower case."""
    return set(re.split(r"[^a-z]+", path.stem.lower()))


def split_of_name(path: Path) -> int:
    """Return the split that a file's name puts its rows in."""
    codes = {SPLIT_WORDS[word] for word in words_of(path) & SPLIT_WORDS.keys()}
    if len(codes) > 1:
        raise UserError(str(path), "a name with several splits", LAYOUT)
    return next(iter(codes), TRAIN)


def source_of(rows: Sequence[Row], fixed: Sequence[int], columns: ColumnsConfig, files: Sequence[Path]) -> Source:
    """Return rows as a data set, in the splits ``fixed``; UserError for cells that do not fit."""
    wanted = [columns.text] if columns.second is None else [columns.text, columns.second]
    texts = tuple(tuple(_text(row, column) for column in wanted) for row in rows)
    labels, targets, sites = np.zeros(len(rows), np.int64), None, None
    site_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = (columns.score or "",)
    remarks: tuple[str, ...] = ()
    if columns.score is not None:
        targets = np.array([_number(row, columns.score) for row in rows], np.float32)
        remarks = _one_value(columns.score, set(targets[np.equal(fixed, TRAIN)].tolist()))
    if columns.label is not None:
        words = _names(rows, columns.label)
        class_names = in_order({word for word, code in zip(words, fixed, strict=True) if code == TRAIN})
        remarks = _one_value(columns.label, class_names)
        known = set(class_names)
        for row, word in zip(rows, words, strict=True):
            if word not in known:
                where = f"{row.where}, column {columns.label}"
                raise UserError(where, show(word), f"a class of train: {show(class_names)}")
        labels = _codes(words, class_names)
    if columns.site is not None:
        places = _names(rows, columns.site)
        site_names = in_order(set(places))
        sites = _codes(places, site_names)
    return Source(
        images=np.empty((len(rows), 0), np.uint8),
        labels=labels,
        class_names=class_names,
        sites=sites,
        site_names=site_names,
        fixed=np.array(fixed, np.int64),
        texts=texts,
        targets=targets,
        files=tuple(files),
        remarks=remarks,
    )


def in_order(names: set[str]) -> tuple[str, ...]:
    """Sort names, whole numbers by their size."""
    if all(re.fullmatch(rf"[0-9]{{1,{MAX_DIGITS}}}", name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def repeated_texts(texts: Texts, train: Indices, held_out: Mapping[str, Indices]) -> tuple[str, ...]:
    """Return a line for each split ``held_out`` with texts that training has as well, but for capitals."""
    seen = {_lower(texts[place]) for place in train}
    counts = {name: sum(_lower(texts[place]) in seen for place in places) for name, places in held_out.items()}
    return tuple(
        f"{count} of {len(held_out[name])} texts of {name} stand in train as well"
        for name, count in counts.items()
        if count
    )


def _lower(text: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part.lower() for part in text)


def _codes(names: Sequence[str], known: Sequence[str]) -> Indices:
    place = {name: code for code, name in enumerate(known)}
    return np.array([place[name] for name in names], np.int64)


def _one_value(column: str, values: Collection[object]) -> tuple[str, ...]:
    """Return a line where there is nothing to tell apart; inputs to distil over need no more than that."""
    return tuple(f"every row of train has {show(value)} in column {column}" for value in values if len(values) == 1)


def _split_of_cell(row: Row, column: str) -> int:
    word = _text(row, column)
    if word.lower() not in SPLIT_WORDS:
        raise UserError(f"{row.where}, column {column}", repr(word), ", ".join(SPLIT_WORDS))
    return SPLIT_WORDS[word.lower()]


def _text(row: Row, column: str) -> str:
    """Return a cell that is a text; it must hold something."""
    value = row.cells[column]
    where, expected = f"{row.where}, column {column}", "a text"
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UserError(where, "nothing", expected)
    if not isinstance(value, str):
        raise UserError(where, show(value), expected)
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can name the halves of a character one by one
        raise UserError(where, f"half a character in {show(value)}", expected) from None
    return value.strip()


def _names(rows: Sequence[Row], column: str) -> list[str]:
    """Return the classes or sites in a column: texts, whole numbers, or true and false.

    UserError for other kinds, for true or false beside other names, and for one number written in two ways (1 and 1.0).
    """
    names: list[str] = []
    written: dict[str, str] = {}  # what a name means -> how it was written first
    kinds: dict[bool, str] = {}  # whether a cell was true or false -> the first such name
    for row in rows:
        name, value = _name(row, column), row.cells[column]
        is_number = PLAIN_NUMBER.fullmatch(name) is not None and len(name) <= MAX_DIGITS
        first = written.setdefault(str(float(name)) if is_number else name, name)
        kinds.setdefault(isinstance(value, bool), name)
        first = kinds.get(not isinstance(value, bool), first)
        if first != name:
            where = f"{row.where}, column {column}"
            raise UserError(
                where, f"{show(name)} beside {show(first)}", "classes or sites of one kind, each written in one way"
            )
        names.append(name)
    return names


def _name(row: Row, column: str) -> str:
    value = row.cells[column]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return str(value)
    if value is None or isinstance(value, str):
        return _text(row, column)
    raise UserError(f"{row.where}, column {column}", show(value), "a text or a whole number")


def _number(row: Row, column: str) -> float:
    value = row.cells[column]
    try:
        # Python's own reading of texts takes 1_000 for a number.
        number = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= LARGEST:
        raise UserError(f"{row.where}, column {column}", show(value), f"a number of at most {LARGEST:.4g}")
    return number
