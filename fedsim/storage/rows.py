"""Tables of a run folder: JSONL files that grow by rows, of which a checkpoint knows how many there are, and which."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.config.mistakes import show
from fedsim.errors import UserError
from fedsim.machine.files import about, finite, parse_json, sync_folder, write_atomic

Row = dict[str, Any]


@dataclass(frozen=True)
class Seal:
    """What a checkpoint keeps of a table: the number of its rows, and the sha256 over their bytes."""

    rows: int
    sha256: str


NO_ROWS = Seal(0, hashlib.sha256().hexdigest())


class Table:
    """One table, which this process alone writes; ``counter`` is the key that counts rounds, or steps, from 1."""

    def __init__(self, path: Path, counter: str = "round") -> None:
        self._path = path
        self._counter = counter
        self._know(b"")

    def _know(self, content: bytes) -> None:
        self._num_rows, self._num_bytes, self._digest = content.count(b"\n"), len(content), hashlib.sha256(content)

    @property
    def seal(self) -> Seal:
        """What identifies the rows so far."""
        return Seal(self._num_rows, self._digest.hexdigest())

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows, durably. Floats read back equal; nan and inf become null.

        UserError where the file is not the one that this process has written.
        """
        content = "".join(json.dumps(finite(row), allow_nan=False) + "\n" for row in rows).encode()
        is_new = not self._path.exists()
        with about(self._path), self._path.open("ab") as file:
            found = os.fstat(file.fileno()).st_size
            if found != self._num_bytes:
                expected = f"the {self._num_bytes} that this run has written; nobody else may write there"
                raise UserError(str(self._path), f"{found} bytes", expected)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(self._path.parent)
        self._num_rows += len(rows)
        self._num_bytes += len(content)
        self._digest.update(content)

    def cut(self, last: int, seal: Seal | None = None) -> None:
        """Drop the rows after the ``last`` round and a torn last line; the rows before keep their bytes.

        ``seal``: of the rows up to ``last``. UserError that names the first row to differ where they are others.
        """
        lines, rows = _read(self._path, self._counter)
        is_kept = [row[self._counter] <= last for row in rows]
        content = b"".join(line for line, keep in zip(lines, is_kept, strict=True) if keep)
        self._know(content)
        if seal is not None and self.seal != seal:
            place, found = _first_fault(rows, is_kept, self._counter, last)
            expected = f"the {seal.rows} rows of the checkpoint of {self._counter} {last}, each in its place"
            raise UserError(f"{self._path}{place}", found, expected)
        if self._path.exists() and len(content) < self._path.stat().st_size:
            write_atomic(self._path, content)


def read_rows(path: Path, counter: str = "round") -> list[Row]:
    """The rows of a JSONL file, none where there is no file; a torn last line is left out.

    Raises UserError where another line is no JSON object with a whole number of this name.
    """
    return _read(path, counter)[1]


def _read(path: Path, counter: str) -> tuple[list[bytes], list[Row]]:
    """The lines of a table with their newlines, and what they say."""
    content = path.read_bytes().split(b"\n") if path.exists() else [b""]
    rows: list[Row] = []
    for place, line in enumerate(content[:-1], start=1):  # a kill may leave a last line without its newline
        try:
            row = json.loads(line)
            is_row = type(row[counter]) is int
        except (ValueError, TypeError, KeyError, RecursionError):
            is_row = False
        if not is_row:
            found = show(line.decode(errors="replace"))
            raise UserError(f"{path} line {place}", found, f"a JSON row with its {counter}")
        rows.append(row)
    return [line + b"\n" for line in content[:-1]], rows


def _first_fault(rows: Sequence[Row], is_kept: Sequence[bool], counter: str, last: int) -> tuple[str, str]:
    """Say where rows that are not the sealed ones first go wrong, as far as their numbers tell, and how."""
    before, seen, number = 0, set(), 0
    for place, (row, keep) in enumerate(zip(rows, is_kept, strict=True), start=1):
        if not keep:
            continue
        number += 1
        now, who = row[counter], [f"{key} {row[key]}" for key in ("phase", "client") if key in row]
        if now not in (before, before + 1):
            return f" line {place}", f"{counter} {now} after {counter} {before}"
        name = ", ".join([f"{counter} {now}", *who])
        if name in seen:
            return f" line {place}", f"{name} twice"
        seen.add(name)
        before = now
    if before < last:
        return "", f"nothing after {counter} {before}" if number else "no rows"
    return "", f"{number} rows, not all as they were written"


def metric_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl, with the best round's test where that was scored at the end alone."""
    rows = read_rows(folder / "metrics.jsonl")
    results = read_object(folder / "results.json") or {}
    for row in rows:
        if row["round"] == results.get("best_round") and row.get("test") is None:
            row["test"] = results.get("test")
    return rows


def read_object(file: Path) -> dict[str, Any] | None:
    """Return what a JSON file holds, None where there is none; UserError where that is no object."""
    if not file.is_file():
        return None
    try:
        content = parse_json(file.read_text())
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(str(file), f"no readable JSON object ({error})", "what a run writes") from None
    return content
