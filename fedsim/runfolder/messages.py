"""What a run says to the person who waits, also kept in its folder for those who look from elsewhere."""

import os
import time
from pathlib import Path

from fedsim.errors import one_line
from fedsim.machine.files import about

FILE_NAME = "messages.log"
#: How the line begins that says what ended a run before its time.
ENDED = "ended by "
#: How far from its end the file is read.
MOST_BYTES = 16_384


def stamped(text: str) -> str:
    """Return a line that begins with the time."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}"


def keep_message(folder: Path, text: str) -> None:
    """Append a line."""
    path = folder / FILE_NAME
    with about(path), path.open("ab") as file:
        file.write((stamped(one_line(text)) + "\n").encode())


def last_messages(folder: Path) -> list[str]:
    """Return the last whole lines, the newest last; none where there is no file."""
    try:
        with (folder / FILE_NAME).open("rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - MOST_BYTES)
            file.seek(start)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    return [one_line(line.decode(errors="replace")) for line in lines[1 if start else 0 : -1]]
