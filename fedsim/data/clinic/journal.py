"""What an import has done so far, a line per file, so that it goes on after any end."""

import fcntl
import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedsim.errors import UserError, reading

JOURNAL = "journal.jsonl"


class Journal:
    """The file ``journal.jsonl`` of a set. In memory are only the places of its lines, by the files that they tell of.

    A line that a kill has cut is dropped: its file is done again. Of two lines about one file the later one counts.
    """

    def __init__(self, folder: Path) -> None:
        """Open it, or begin it; UserError for lines that no import has written, and where another one is at work."""
        self._folder = folder
        self._path = folder / JOURNAL
        self._file = self._path.open("a+b")
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise UserError(str(folder), "another import at work in it", "one at a time") from None
        self.places: dict[str, int] = {}
        self._file.seek(0)
        place = 0
        with reading(str(self._path), "the lines of an import"):
            for line in self._file:
                if line.endswith(b"\n"):
                    self.places[json.loads(line)["source"]] = place
                    place += len(line)
        self._file.truncate(place)

    def add(self, source: str, stamp: list[int], rows: list[dict[str, str]]) -> None:
        """Note that a file, of which ``stamp`` tells the state, has become these rows of the manifest."""
        self.places[source] = self._file.seek(0, 2)
        self._file.write((json.dumps({"source": source, "stamp": stamp, "rows": rows}) + "\n").encode())

    def flush(self) -> None:
        """Hand all lines over to the system."""
        self._file.flush()

    def rows(self, source: str) -> list[dict[str, str]]:
        """Return the rows of a file."""
        rows: list[dict[str, str]] = self._entry(source)["rows"]
        return rows

    def is_done(self, source: str, stamp: list[int]) -> bool:
        """Whether a file is as it was when it was done, and all that was made of it is still there and whole."""
        if source not in self.places:
            return False
        entry = self._entry(source)
        return entry["stamp"] == stamp and all(self._is_whole(row) for row in entry["rows"])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _entry(self, source: str) -> dict[str, Any]:
        self._file.seek(self.places[source])
        line: dict[str, Any] = json.loads(self._file.readline())
        return line

    def _is_whole(self, row: dict[str, str]) -> bool:
        try:
            with (self._folder / row["path"]).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == row["sha256"]
        except OSError:
            return False


def stamp_of(path: Path) -> list[int]:
    """Return what tells a file from what it was: its size and time."""
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(str(path), str(error.strerror), "a file that can be read") from error
    return [stat.st_size, stat.st_mtime_ns]
