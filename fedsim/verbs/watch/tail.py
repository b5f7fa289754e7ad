"""A table that somebody else appends to, on this machine or on another that shares the folder."""

import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Tail:
    """The rows of a JSONL file so far; ``look`` reads what is new.

    ``most_bytes``: how far from its end a first look begins; None: at its start. A line without its newline waits for
    the next look, and so does one that is no row yet: some shared file systems show a file longer before they show what
    is in it. ``trouble`` says which, or is empty.
    """

    def __init__(self, path: Path, most_bytes: int | None = None) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._start_anew()

    def _start_anew(self) -> None:
        self.rows: list[Row] = []
        self.trouble = ""
        self._inode, self._offset = -1, 0

    def look(self) -> list[Row]:
        """Return all rows; the file may have been cut and replaced by a run that was resumed."""
        try:
            with self._path.open("rb") as file:
                facts = os.fstat(file.fileno())
                if facts.st_ino != self._inode or facts.st_size < self._offset:
                    self._start_anew()
                    self._inode = facts.st_ino
                    self._offset = max(0, facts.st_size - self._most_bytes) if self._most_bytes else 0
                    if self._offset:
                        file.seek(self._offset)
                        self._offset += len(file.readline())  # of which the beginning is not seen
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            self._start_anew()
            return self.rows
        self._take(content)
        return self.rows

    def _take(self, content: bytes) -> None:
        self.trouble = ""
        for line in content.split(b"\n")[:-1]:
            row = as_row(line)
            if row is None:
                self.trouble = f"{self._path.name}: no row after round {self._last_round}"
                return
            self.rows.append(row)
            self._offset += len(line) + 1

    @property
    def _last_round(self) -> int:
        return self.rows[-1]["round"] if self.rows else 0

    def of_last_round(self) -> list[Row]:
        """Look, forget all rows but those of the last round, and return these."""
        rows = self.look()
        self.rows = [row for row in rows if row["round"] == self._last_round]
        return self.rows


def as_row(line: bytes) -> Row | None:
    """Return a line's row; None where it is no JSON object with its round."""
    try:
        row = json.loads(line)
        return row if type(row["round"]) is int else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
