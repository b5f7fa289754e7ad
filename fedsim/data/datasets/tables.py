"""Tables on disk as rows of cells: TSV, CSV, JSON lines, parquet, and the datasets library's arrow."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.errors import UserError, reading
from fedsim.machine.files import parse_json

#: TSV as GLUE has it, where a quotation mark is a character like any other; CSV as in RFC 4180.
DIALECTS: dict[str, dict[str, Any]] = {
    ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
    ".csv": {"strict": True},
}
SUFFIXES = (*DIALECTS, ".jsonl", ".parquet", ".arrow")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NAMES_SHOWN = 12
NAME_LENGTH = 40


class Row(NamedTuple):
    """Where a row stands, for messages, and its cells by column."""

    where: str
    cells: dict[str, Any]


class Table(NamedTuple):
    """The rows of a file, and the numbers of those left out since they have not as many cells as there are columns."""

    rows: list[Row]
    odd: list[int]


def column_names(path: Path) -> list[str]:
    """Return the names of a table's columns; of JSON lines those of the first row. UserError as in ``read_table``."""
    import pyarrow as pa  # late: few runs need it, and it takes 24 MiB
    import pyarrow.parquet

    with reading(str(path), f"a {path.suffix} table"):
        if _dialect(path) is not None:
            return next(_delimited(path), [])
        if path.suffix == ".jsonl":
            return next((list(row.cells) for row in _json_rows(path)), [])
        if path.suffix.lower() == ".parquet":
            return list(pyarrow.parquet.read_schema(path).names)
        with pa.memory_map(str(path)) as stream:
            return list(pa.ipc.open_stream(stream).schema.names)


def read_table(path: Path, wanted: Sequence[str], header: Sequence[str] | None = None) -> Table:
    """Return the cells of the columns ``wanted``; ``header`` names those of a TSV file that does not itself.

    UserError where the file cannot be read, or has one of the columns not at all or twice.
    """
    with reading(str(path), f"a {path.suffix} table"):
        if _dialect(path) is not None:
            return _text_table(path, wanted, header)
        if path.suffix == ".jsonl":
            rows = list(_json_rows(path))
            for row in rows:
                _require(row.where, wanted, list(row.cells))
            return Table([Row(row.where, {name: row.cells[name] for name in wanted}) for row in rows], [])
        return Table(_binary_rows(path, wanted), [])


def csv_rows(path: Path, expected: str) -> list[dict[str, str]]:
    """Return all cells of a CSV file by its header, a missing one as an empty text.

    UserError where it cannot be read, which says what was ``expected``, where a column is there twice, and for a row
    with more cells than the header.
    """
    with reading(str(path), expected), path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, restval="")
        names = rows.fieldnames or []
        _require(str(path), list(dict.fromkeys(names)), names)
        found = list(rows)
        for number, row in enumerate(found, start=1):
            if None in row:  # where DictReader puts what has no column
                right = f"{len(names)}; quotation marks around a cell with a comma"
                raise UserError(f"{path} row {number}", f"{len(names) + len(row[None])} cells", right)
        return found


def _text_table(path: Path, wanted: Sequence[str], header: Sequence[str] | None) -> Table:
    table = Table([], [])
    for number, cells in text_rows(path, wanted, header):
        if cells is not None:
            table.rows.append(Row(f"{path} row {number}", dict(zip(wanted, cells, strict=True))))
        else:
            table.odd.append(number)
    return table


def text_rows(
    path: Path, wanted: Sequence[str], header: Sequence[str] | None = None
) -> Iterator[tuple[int, list[str] | None]]:
    """Yield the number of each row of a TSV or CSV file, from 1, and its cells of the columns ``wanted``.

    None in place of the cells where there are not as many as columns. UserError as in ``read_table``.
    """
    lines = _delimited(path)
    names = list(header) if header is not None else next(lines, [])
    _require(str(path), wanted, names)
    places = [names.index(name) for name in wanted]
    for number, line in enumerate(lines, start=1):
        if line == names:  # of files that were put one behind the other; it would be a class of its own
            raise UserError(f"{path} row {number}", "the header once more", "a header above all rows")
        yield number, [line[place] for place in places] if len(line) == len(names) else None


def _delimited(path: Path) -> Iterator[list[str]]:
    """Yield the lines of a TSV or CSV file that are not empty."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from filter(None, csv.reader(file, **_dialect(path) or {}))


def _dialect(path: Path) -> dict[str, Any] | None:
    """Return how the cells of a text table are told apart; a file without suffix, as archives have them, is CSV."""
    return DIALECTS.get(path.suffix.lower() or ".csv")


def _json_rows(path: Path) -> Iterator[Row]:
    lines = path.read_bytes().removeprefix(BYTE_ORDER_MARK).split(b"\n")
    for number, line in enumerate(filter(bytes.strip, lines), start=1):
        where = f"{path} row {number}"
        with reading(where, "a JSON object"):
            cells = parse_json(line.decode())
            if not isinstance(cells, dict):
                raise ValueError(line.decode())
        yield Row(where, cells)


def read_arrow(path: Path, wanted: Sequence[str]) -> Any:
    """Return the columns ``wanted`` of a Parquet or Arrow file as Arrow's table; UserError as in ``read_table``."""
    import pyarrow as pa  # late, as above
    import pyarrow.parquet

    _require(str(path), wanted, column_names(path))
    if path.suffix.lower() == ".parquet":
        # Texts come as codes, of which a million take four megabytes; Arrow's own pool would keep what it once took.
        pa.set_memory_pool(pa.system_memory_pool())
        schema = pyarrow.parquet.read_schema(path)
        coded = [name for name in wanted if pa.types.is_string(schema.field(name).type)]
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True, read_dictionary=coded)
        table = file.read(columns=list(wanted), use_threads=False)
    else:
        with pa.memory_map(str(path)) as stream:
            table = pa.ipc.open_stream(stream).read_all().select(list(wanted))
    table.validate(full=True)  # offsets of a damaged file would lead to any place of the memory
    return table


def _binary_rows(path: Path, wanted: Sequence[str]) -> list[Row]:
    rows = read_arrow(path, wanted).to_pylist()
    return [Row(f"{path} row {number}", cells) for number, cells in enumerate(rows, start=1)]


def _require(where: str, wanted: Sequence[str], names: Sequence[str]) -> None:
    """UserError unless every wanted column is there once."""
    for column in wanted:
        if names.count(column) != 1:
            shown = [name if len(name) <= NAME_LENGTH else f"{name[:NAME_LENGTH]}..." for name in names[:NAMES_SHOWN]]
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            found = f"no column {column}" if column not in names else f"several columns {column}"
            raise UserError(where, found, f"one of its columns, each once: {', '.join(shown)}{more}")
