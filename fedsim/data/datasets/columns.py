"""Tables of images by column, each distinct cell once, so that a million rows take little time and memory.

N rows, D distinct cells of a column.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedsim.config.mistakes import show
from fedsim.data.dataset import Indices
from fedsim.data.datasets.tables import DIALECTS, read_arrow, text_rows
from fedsim.errors import UserError, reading

SUFFIXES = (*DIALECTS, ".parquet")
NUM_SHOWN = 3
MAX_DIGITS = 18
PLAIN_NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?")
EMPTY = "nothing"
#: Half as large as places elsewhere.
Codes = npt.NDArray[np.int32]


class Column(NamedTuple):
    """The distinct ``cells`` (D) in the order in which they first occur, and each row's place among them, (N,)."""

    cells: list[Any]
    codes: Codes


class Columns(NamedTuple):
    """Columns by name; ``numbers`` (N,) of their rows in the file, and of ``odd`` rows that have no place in them.

    Of several files the numbers go on from one to the next; ``ends``: the last number of each.
    """

    by_name: dict[str, Column]
    numbers: Codes
    odd: Codes
    ends: tuple[int, ...] = ()


class Fault(NamedTuple):
    """Rows, by their numbers in the file, in which something is wrong; what is found in the first, what is expected."""

    rows: npt.NDArray[np.integer]
    column: str | None
    found: tuple[str, ...]
    expected: str


class Faults:
    """What is wrong with the rows of a table, told in one line."""

    def __init__(self, paths: Sequence[Path], columns: Columns) -> None:
        self._paths, self._numbers, self._ends = paths, columns.numbers, columns.ends
        self._num_rows = len(columns.numbers) + len(columns.odd)
        self._faults: list[Fault] = []
        if len(columns.odd):
            found = ("another number of cells",) * NUM_SHOWN
            self._faults.append(Fault(columns.odd, None, found, "as many cells as the header has"))

    def add(self, rows: Indices, column: str, tell: Callable[[int], str], expected: str) -> None:
        """Note that ``rows``, places among those that were read, are wrong; ``tell`` says what is found in one."""
        if len(rows):
            found = tuple(tell(row) for row in rows[:NUM_SHOWN].tolist())
            self._faults.append(Fault(self._numbers[rows], column, found, expected))

    def add_cells(self, name: str, column: Column, wrong: Mapping[int, str], expected: str) -> None:
        """Note what is wrong with distinct cells, by their places among them."""
        is_wrong = np.zeros(len(column.cells), np.bool_)
        is_wrong[list(wrong)] = True
        self.add(np.flatnonzero(is_wrong[column.codes]), name, lambda row: wrong[int(column.codes[row])], expected)

    def refuse(self) -> None:
        """UserError where something was noted: in how many rows, the first few of them, and what is expected there."""
        if not self._faults:
            return
        rows = np.unique(np.concatenate([fault.rows for fault in self._faults]))
        shown = [
            (self._place(row, fault.column), found, fault.expected)
            for row in rows[:NUM_SHOWN].tolist()
            for fault in self._faults
            for at, found in zip(fault.rows[:NUM_SHOWN].tolist(), fault.found, strict=False)
            if at == row
        ]
        expected = "; ".join(dict.fromkeys(right for _, _, right in shown))
        whole = ", ".join(map(str, self._paths))
        if len(shown) == len(rows) == 1:
            raise UserError(f"{whole} {shown[0][0]}" if len(self._paths) == 1 else shown[0][0], shown[0][1], expected)
        texts = [f"{place}: {found}" for place, found, _ in shown]
        more = [f"and {len(rows) - NUM_SHOWN:,} more"] if len(rows) > NUM_SHOWN else []
        where = f"{whole}, {len(rows):,} of {self._num_rows:,} rows"
        raise UserError(where, "; ".join([*texts, *more]), expected)

    def _place(self, row: int, column: str | None) -> str:
        """Return in words where a row is, by its number in its file, which is named where there are several."""
        place = f"row {row}"
        if len(self._paths) > 1:
            table = bisect_left(self._ends, row)
            place = f"{self._paths[table]} row {row - (self._ends[table - 1] if table else 0)}"
        return place if column is None else f"{place}, column {column}"


def read_tables(paths: Sequence[Path], wanted: Sequence[str]) -> tuple[Columns, Indices]:
    """Return the columns ``wanted`` of several tables as one's, and of which table each row is, (N,).

    UserError as ``read_columns``, and for a table without a row.
    """
    reads = [read_columns(path, wanted) for path in paths]
    for path, read in zip(paths, reads, strict=True):
        if len(read.numbers) == 0 and len(read.odd) == 0:
            raise UserError(str(path), "no row", "a row for every image")
    of_table = np.repeat(np.arange(len(reads)), [len(read.numbers) for read in reads])
    if len(reads) == 1:
        return reads[0], of_table
    ends = np.cumsum([len(read.numbers) + len(read.odd) for read in reads]).tolist()
    starts = [0, *ends[:-1]]
    numbers, odd = (
        np.concatenate([rows + start for rows, start in zip(own, starts, strict=True)])
        for own in ([read.numbers for read in reads], [read.odd for read in reads])
    )
    by_name = {name: _joined([read.by_name[name] for read in reads]) for name in reads[0].by_name}
    return Columns(by_name, numbers, odd, tuple(ends)), of_table


def _joined(columns: Sequence[Column]) -> Column:
    """Return the rows of several columns one behind the other, with the distinct cells of all."""
    known: dict[tuple[type, Any], int] = {}  # by their type, since 1 is true, and a text says something else
    codes = []
    for column in columns:
        places = [known.setdefault((type(cell), cell), len(known)) for cell in column.cells]
        codes.append(np.array(places, np.int32)[column.codes])
    return Column([cell for _, cell in known], np.concatenate(codes))


def read_columns(path: Path, wanted: Sequence[str]) -> Columns:
    """Return the columns ``wanted`` of a CSV, TSV or Parquet file with a header; one without suffix is CSV.

    UserError where the file is none of these, cannot be read, or has one of the columns not at all or twice.
    """
    suffix = path.suffix.lower() or ".csv"
    if suffix not in SUFFIXES:
        raise UserError(str(path), f"a file {suffix}", f"a table that ends in {', '.join(SUFFIXES)}")
    wanted = list(dict.fromkeys(wanted))
    with reading(str(path), "a table"):
        if suffix != ".parquet":
            return _of_text(path, wanted)
        # One after the other, so that only one of them is in memory whole.
        found = {name: _decoded(path, name, read_arrow(path, [name])[name]) for name in wanted}
        num_rows = len(next(iter(found.values())).codes)
        return Columns(found, np.arange(1, num_rows + 1, dtype=np.int32), np.empty(0, np.int32))


def _of_text(path: Path, wanted: Sequence[str]) -> Columns:
    known: list[dict[Any, int]] = [{} for _ in wanted]
    codes: list[list[int]] = [[] for _ in wanted]
    numbers, odd = [], []
    for number, cells in text_rows(path, wanted):
        if cells is None:
            odd.append(number)
            continue
        numbers.append(number)
        for place, own, cell in zip(codes, known, cells, strict=True):
            place.append(own.setdefault(cell, len(own)))
    columns = (Column(list(own), np.array(place, np.int32)) for own, place in zip(known, codes, strict=True))
    return Columns(dict(zip(wanted, columns, strict=True)), np.array(numbers, np.int32), np.array(odd, np.int32))


def _decoded(path: Path, name: str, column: Any) -> Column:
    """Return a column of Arrow's by its distinct cells."""
    import pyarrow as pa  # late: it takes 24 MiB

    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_nested(kind):
        raise UserError(f"{path}, column {name}", f"cells of type {kind}", "texts or numbers")
    coded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.combine_chunks()
    return Column(coded.dictionary.to_pylist(), coded.indices.to_numpy(zero_copy_only=False).astype(np.int32))


def words_of(name: str, column: Column, faults: Faults, expected: str, may_be_empty: bool = False) -> list[str | None]:
    """Return what each distinct cell (D) says, None for an empty one and for what is noted among the faults.

    Whole numbers, and true and false, count as texts; 1 beside 1.0 in one column would be two names, and is refused.
    """
    words: list[str | None] = []
    wrong: dict[int, str] = {}
    written: dict[float, str] = {}
    for code, cell in enumerate(column.cells):
        word, fault = word_of(cell)
        if word is not None and len(word) <= MAX_DIGITS and PLAIN_NUMBER.fullmatch(word):
            first = written.setdefault(float(word), word)
            if first != word:
                word, fault = None, f"{show(word)} beside {show(first)}"
        if word is None and not (may_be_empty and fault == EMPTY):
            wrong[code] = fault
        words.append(word)
    faults.add_cells(name, column, wrong, expected)
    return words


def word_of(cell: Any) -> tuple[str | None, str]:
    """Return a cell as a text, or None and what is wrong with it."""
    if cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()):  # nan is not itself
        return None, EMPTY
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if not isinstance(cell, str | int):
        return None, show(cell)
    word = str(cell).strip()
    try:
        word.encode()
    except UnicodeEncodeError:
        return None, f"half a character in {show(word)}"
    return word, ""


def numbered(column: Column, words: Sequence[str | None], names: Sequence[str]) -> Indices:
    """Return the place among ``names`` of each row's word, (N,); -1 where it has none."""
    place = {name: number for number, name in enumerate(names)}
    return np.array([-1 if word is None else place[word] for word in words], np.int64)[column.codes]
