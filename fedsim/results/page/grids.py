"""Tables of the page: cells with what they are sorted by, and keys that runs share or differ in."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.results.tables import Shown

NUMBER = re.compile(r"(?:< )?([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)(?: |$)")
ABSENT = "-"


@dataclass(frozen=True)
class Cell:
    """``value``: what a column of numbers is sorted by; None for a text, and for a number that is not there."""

    text: str
    value: float | None = None
    bold: bool = False


@dataclass(frozen=True)
class Grid:
    """A table. ``numeric``: whether a column is one of numbers, by column."""

    header: list[str]
    rows: list[list[Cell]]

    @property
    def numeric(self) -> list[bool]:
        """Whether a column has numbers, and nothing else but empty places."""
        return [
            any(row[column].value is not None for row in self.rows)
            and all(row[column].value is not None or row[column].text.split(" ")[0] == ABSENT for row in self.rows)
            for column in range(len(self.header))
        ]


def grid(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Grid:
    """Return a table of plain values; what is no number there, None or nan, is an empty place."""
    return Grid(list(header), [[cell_of(value) for value in row] for row in rows])


def cell_of(value: Any) -> Cell:
    """Return a value as a cell."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(number(value), float(value)) if math.isfinite(value) else Cell(ABSENT)
    return Cell(ABSENT if value is None else str(value))


def number(value: float) -> str:
    """Return a number with four digits, whole ones and large ones in full."""
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def from_shown(one: Shown) -> Grid:
    """Return a comparison's table; a cell is sorted by the number that it begins with."""
    rows = []
    for place, row in enumerate(one.rows):
        cells = [Cell(text, leading(text), (place, column) == one.bold) for column, text in enumerate(row)]
        rows.append([Cell(row[0]), *cells[1:]])
    return Grid(one.header, rows)


def leading(text: str) -> float | None:
    """Return the number that a text begins with, if it does."""
    found = NUMBER.match(text)
    return None if found is None else float(found[1].replace(",", ""))


def shared_and_differing(by_run: Mapping[str, Mapping[str, Any]]) -> tuple[list[tuple[str, str]], Grid | None]:
    """Return keys that all runs have alike, with their values, and a table of the others; None where there are none."""
    keys = dict.fromkeys(key for facts in by_run.values() for key in facts)
    found = {key: [exactly(facts[key]) if key in facts else Cell(ABSENT) for facts in by_run.values()] for key in keys}
    shared = [(key, cells[0].text) for key, cells in found.items() if len({cell.text for cell in cells}) == 1]
    others = {key: cells for key, cells in found.items() if len({cell.text for cell in cells}) > 1}
    if not others:
        return shared, None
    rows = [[Cell(run), *(cells[place] for cells in others.values())] for place, run in enumerate(by_run)]
    return shared, Grid(["run", *others], rows)


def exactly(value: Any) -> Cell:
    """Return a value of a config or of an environment as people write it, with all digits."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return Cell(text, cell_of(value).value)
