"""Standard output and error that may be closed, full or gone. Imports nothing slow: the command line begins here."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsim.errors import UserError, one_line


def fill_closed_streams() -> None:
    """Put /dev/null in the place of standard streams that are closed.

    Without it Python has None there, and the next file that is opened becomes the stream that C code prints to.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()


def _nowhere() -> Any:
    return Path(os.devnull).open("w", encoding="utf-8")


class Output:
    """Standard output as a run uses it, which is worth more than what it prints.

    What cannot be written is dropped from then on, with one line on standard error.
    """

    def __init__(self) -> None:
        self._stream = sys.stdout

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        # Python writes what is left in sys.stdout at its end, and would fail there.
        self._stream = sys.stdout = _nowhere()
        print(f"standard output: {error.strerror}; the run goes on without it", file=sys.stderr)


@contextlib.contextmanager
def showing() -> Iterator[None]:
    """Print inside the ``with`` what a command is there to show: UserError where it cannot be written."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough, which the command line knows how to end
        raise
    except OSError as error:
        sys.stdout = _nowhere()
        raise UserError("standard output", error.strerror or str(error), "room for what is shown") from None


def show_rows(rows: list[tuple[str, str]]) -> None:
    """Print names and what belongs to them in two columns, unbroken when piped into another program."""
    width = max((len(name) for name, _ in rows), default=0)
    with showing():
        for name, text in rows:
            print(f"{name:{width}}  {one_line(text)}")
