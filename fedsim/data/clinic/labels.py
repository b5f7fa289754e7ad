"""A table of labels for an import: which files, and what is known of each."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from fedsim.data.clinic.convert import COLUMNS, FROM_LABELS, SUFFIXES
from fedsim.data.datasets.tables import csv_rows
from fedsim.data.folders import require_file
from fedsim.errors import UserError

FORM = "a CSV table with a column path, and any of label, site, patient, split"
PATH = "path"
NUM_SHOWN = 3


def read_labels(path: Path, sources: Sequence[str]) -> dict[str, Mapping[str, str]]:
    """Return the cells of a CSV table by the file that its column ``path`` names: below the folder, or by its name
    alone, with or without suffix, where only one file has it.

    UserError for columns that the manifest fills itself, and for rows that name no file, several, or one that another
    row names too: how many, and the first of them.
    """
    require_file(path, FORM)
    rows = csv_rows(path, FORM)
    if not rows or PATH not in rows[0]:
        raise UserError(str(path), "no row" if not rows else "no column path", FORM)
    taken = [name for name in rows[0] if name in COLUMNS and name not in (PATH, *FROM_LABELS)]
    if taken:
        raise UserError(f"{path}, column {taken[0]}", "a column that the manifest fills itself", "another name")
    by_name = _by_name(sources)
    found: dict[str, Mapping[str, str]] = {}
    wrong = []
    for number, row in enumerate(rows, start=1):
        named = by_name.get(row[PATH], [])
        if len(named) == 1 and named[0] not in found:
            cells = {name: cell.strip() if name in FROM_LABELS else cell for name, cell in row.items()}
            found[named[0]] = {name: cell for name, cell in cells.items() if name != PATH}
        else:
            what = "a file of another row" if len(named) == 1 else f"{len(named) or 'no'} files"
            wrong.append(f"row {number} {row[PATH]!r}: {what}")
    if wrong:
        more = f"; and {len(wrong) - NUM_SHOWN} more" if len(wrong) > NUM_SHOWN else ""
        shown = "; ".join(wrong[:NUM_SHOWN]) + more
        raise UserError(f"{path}, {len(wrong)} of {len(rows)} rows", shown, "one file of the folder for each row")
    return found


def _by_name(sources: Sequence[str]) -> dict[str, list[str]]:
    """Return files by all that a row may call them; a whole path is nobody else's name."""
    found: dict[str, list[str]] = {}
    for source in sources:
        name = PurePosixPath(source).name
        suffixes = [suffix for suffix in SUFFIXES if name.lower().endswith(suffix)]  # what is behind a dot may be none
        for word in {name, *(name[: -len(suffix)] for suffix in suffixes)}:
            found.setdefault(word, []).append(source)
    return found | {source: [source] for source in sources}
