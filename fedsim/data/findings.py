"""Labels of several findings per image, as tables have them, and what is drawn and divided by.

Shapes: N images, F findings.
"""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedsim.config.mistakes import show
from fedsim.data.dataset import Indices

PRESENT, ABSENT, UNKNOWN = KNOWN = (1, 0, -1)
UNSURE = -1  # as CheXpert's tables write it
Targets = npt.NDArray[np.float32]
#: What is made of labels that whoever read the image was not sure of (Irvin et al., CheXpert, AAAI 2019, section 3.2).
Uncertain = Literal["ignored", "positive", "negative"]
Blank = Literal["ignored", "negative"]
MEANING = {"ignored": UNKNOWN, "positive": PRESENT, "negative": ABSENT}


def target_of(cell: object, uncertain: Uncertain = "ignored", blank: Blank = "ignored") -> int | None:
    """Return the target that a cell of a table means, None for a cell that means none.

    1 is present, 0 absent, -1 uncertain, as numbers or texts ("1", "1.0"); nothing is blank: an empty text, None, nan.
    """
    if isinstance(cell, str):
        cell = cell.strip()
        if cell not in ("", "1", "1.0", "0", "0.0", "-1", "-1.0"):
            return None
        cell = float(cell) if cell else None
    if cell is None or cell != cell:  # nan is not itself
        return MEANING[blank]
    if cell == UNSURE:
        return MEANING[uncertain]
    return next((value for value in (PRESENT, ABSENT) if isinstance(cell, Real) and cell == value), None)


def targets_of_columns(
    columns: Mapping[str, Sequence[object]], uncertain: Uncertain = "ignored", blank: Blank = "ignored"
) -> Targets:
    """Return targets (N, F) from a table's columns, one per finding, with cells as ``target_of`` takes them.

    CheXpert's tables are such: a blank finding is not mentioned in the report. ``uncertain`` and ``blank`` say what
    these two become. ValueError, naming column and row, for any other cell.
    """
    targets = np.empty((len(next(iter(columns.values()), ())), len(columns)), np.float32)
    for place, (name, cells) in enumerate(columns.items()):
        known: dict[object, int | None] = {}
        for row, cell in enumerate(cells):
            value = known[cell] if cell in known else known.setdefault(cell, target_of(cell, uncertain, blank))
            if value is None:
                raise ValueError(f"column {name}, row {row + 1}: {show(cell)}, where 1, 0, -1 or nothing is expected")
            targets[row, place] = value
    return targets


def targets_of_lists(
    cells: Sequence[str], names: Sequence[str], nothing: str = "No Finding", separator: str = "|"
) -> Targets:
    """Return targets (N, F) from a column that lists the findings of each image, as NIH ChestX-ray14 has it.

    What is not listed is absent; a cell ``nothing`` lists none. ValueError, naming the row, for an unknown finding.
    """
    place = {name: number for number, name in enumerate(names)}
    targets = np.zeros((len(cells), len(names)), np.float32)
    for row, cell in enumerate(cells):
        for name in cell.split(separator) if cell != nothing else ():
            if name not in place:
                raise ValueError(
                    f"row {row + 1}: {show(name)}, where one of {', '.join([*names, nothing])} is expected"
                )
            targets[row, place[name]] = PRESENT
    return targets


def rarest_findings(targets: Targets) -> Indices:
    """Return for each image the rarest finding that it has, F for one that has none: int64 (N,).

    It stands for the image where one label is needed: for splits and partitions, in which rare findings count most.
    """
    counts = (targets == PRESENT).sum(0)
    by_rarity = np.argsort(counts, kind="stable")
    has = targets[:, by_rarity] == PRESENT
    first = by_rarity[has.argmax(1)] if targets.shape[1] else np.zeros(len(targets), np.int64)
    return np.where(has.any(1), first, targets.shape[1]).astype(np.int64)


def num_lacking(targets: Targets, parts: Sequence[Indices]) -> list[int]:
    """Return for each finding (F) how many clients with images know of none of them whether it has it."""
    known = np.array([(targets[part] != UNKNOWN).any(0) for part in parts if len(part)])
    return [int(number) for number in (~known).sum(0)]
