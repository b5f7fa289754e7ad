"""The table of a set: a row for each picture or volume, in the order of the files that they come from."""

import codecs
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fedsim.data.clinic.convert import COLUMNS, Pseudonyms
from fedsim.data.clinic.journal import Journal
from fedsim.data.clinic.render import Row
from fedsim.machine.files import replacing

Known = Mapping[str, Mapping[str, str]]


class Written(NamedTuple):
    """What a manifest has: rows, of how many files, and how many of these say that names are burned in."""

    num_rows: int
    num_files: int
    num_named: int


def write_manifest(
    path: Path, journal: Journal, sources: Sequence[str], known: Known | None, pseudonyms: Pseudonyms
) -> Written:
    """Write the rows of ``sources``, with what a table of labels knows of them.

    What ``known`` says comes before what a file says; a patient is written as a pseudonym alone. Rows are read and
    written one by one, so that memory does not grow with them.
    """
    more = [] if known is None else [name for name in next(iter(known.values())) if name not in COLUMNS]
    num_rows = num_files = num_named = 0
    with replacing(path, durable=True) as file:
        writer = csv.DictWriter(codecs.getwriter("utf-8")(file), [*COLUMNS, *more], lineterminator="\n")
        writer.writeheader()
        for source in sources:
            cells = {} if known is None else _cells(known[source], pseudonyms)
            rows = journal.rows(source)
            writer.writerows({**row, **cells} for row in rows)
            num_rows += len(rows)
            num_files += bool(rows)
            num_named += any(row["burned_in"] for row in rows)
    return Written(num_rows, num_files, num_named)


def _cells(known: Mapping[str, str], pseudonyms: Pseudonyms) -> Row:
    """Return what a table of labels says of a file. Ids and sites that it leaves empty are as the file has them."""
    cells = {name: cell for name, cell in known.items() if cell or name not in COLUMNS}
    return cells | ({"patient": pseudonyms("patient", cells["patient"])} if "patient" in cells else {})
