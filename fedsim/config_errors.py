"""From what pydantic says about a config to one line for a person: key, found, allowed, nearest name."""

from collections.abc import Iterable
from difflib import get_close_matches


class KeyedError(ValueError):
    """A combination of keys that cannot be run; carries the key to blame, relative to its section."""

    def __init__(self, key: str, found: str, expected: str) -> None:
        super().__init__(f"{key}: found {found}; expected {expected}")
        self.key, self.found, self.expected = key, found, expected


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name closest to ``word`` first, then all of them; only the list when nothing is close."""
    names = list(known)
    close = get_close_matches(word, names, n=1, cutoff=0.5)
    listing = ", ".join(names) if names else "nothing"
    return f"{close[0]} (nearest; known: {listing})" if close else f"one of: {listing}"
