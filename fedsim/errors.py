"""The one exception for mistakes of the person who starts a run: wrong config, missing data, damaged checkpoint."""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

MAX_MESSAGE = 200
# Unicode's categories of what ends a line, steers a terminal, or is half a character, which no stream takes.
UNSHOWN = ("Cc", "Cs", "Zl", "Zp")


def one_line(text: str) -> str:
    """Return a text as one line that any terminal can show; a name of a file or class may hold anything."""
    return "".join(_shown(sign) if unicodedata.category(sign) in UNSHOWN else sign for sign in text)


def _shown(sign: str) -> str:
    return " " if sign == "\n" else sign.encode("unicode_escape").decode()


class UserError(ValueError):
    """Bad input from outside. Shown as one line, exit code 2, never as a traceback.

    ``where`` names the file, key or tensor; ``found`` says what is there; ``expected`` what would be accepted.
    """

    def __init__(self, where: str, found: str, expected: str) -> None:
        self.where, self.found, self.expected = where, found, expected
        super().__init__(one_line(f"{where}: found {found}; expected {expected}"))


@contextmanager
def reading(where: str, expected: str) -> Iterator[None]:
    """Turn whatever a library raises over a file from outside into a UserError.

    Readers of archives, tables and arrays raise a dozen kinds over damaged files, which no list of theirs names.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(where, str(error)[:MAX_MESSAGE] or type(error).__name__, expected) from error


class RankError(UserError):
    """What this rank alone has met, such as a meeting that nobody came to: shown whatever the rank."""
