"""Labels of several findings per image, as tables have them, and what is drawn and divided by.

Shapes: N images, F findings.
"""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedsim.config.mistakes import show
from fedsim.data.client_images import ClientImages
from fedsim.data.dataset import Indices

PRESENT, ABSENT, UNKNOWN = KNOWN = (1, 0, -1)
UNSURE = -1  # as CheXpert's tables write it
Targets = npt.NDArray[np.float32]
#: What is made of labels that whoever read the image was not sure of (Irvin et al., CheXpert, AAAI 2019, section 3.2).
Uncertain = Literal["ignored", "positive", "negative"]
Blank = Literal["ignored", "negative"]
EXPECTED = "1, 0, -1 or nothing"
#: How NIH ChestX-ray14 lists the findings of an image, and what it writes where there is none.
BAR, NOTHING = "|", "No Finding"
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


def targets_of_cells(
    cells: Sequence[object], uncertain: Uncertain, blank: Blank
) -> tuple[npt.NDArray[np.float32], list[int]]:
    """Return the targets (D,) of distinct cells of one finding, and the places of those that mean none."""
    found = [target_of(cell, uncertain, blank) for cell in cells]
    wrong = [place for place, value in enumerate(found) if value is None]
    return np.array([UNKNOWN if value is None else value for value in found], np.float32), wrong


def targets_of_columns(
    columns: Mapping[str, Sequence[object]], uncertain: Uncertain = "ignored", blank: Blank = "ignored"
) -> Targets:
    """Return targets (N, F) from a table's columns, one per finding, with cells as ``target_of`` takes them.

    CheXpert's tables are such: a blank finding is not mentioned in the report. ``uncertain`` and ``blank`` say what
    these two become. ValueError, naming column and row, for any other cell.
    """
    found = []
    for name, cells in columns.items():
        distinct, codes = _coded(cells)
        targets, wrong = targets_of_cells(distinct, uncertain, blank)
        if wrong:
            shown = f"row {codes.index(wrong[0]) + 1}: {show(distinct[wrong[0]])}"
            raise ValueError(f"column {name}, {shown}, where {EXPECTED} is expected")
        found.append(targets[codes])
    return np.stack(found, 1) if found else np.empty((0, 0), np.float32)


def listed_in(cell: str, nothing: str = NOTHING, separator: str = BAR) -> list[str]:
    """Return the findings that a cell lists, as NIH ChestX-ray14 has them; a cell ``nothing`` lists none."""
    return [name for name in map(str.strip, cell.split(separator)) if name not in ("", nothing)]


def targets_of_listed(lists: Sequence[Sequence[str]], names: Sequence[str]) -> Targets:
    """Return targets (D, F) of lists of findings, each one of ``names``: what is not listed is absent."""
    place = {name: number for number, name in enumerate(names)}
    targets = np.zeros((len(lists), len(names)), np.float32)
    for row, own in enumerate(lists):
        targets[row, [place[name] for name in own]] = PRESENT
    return targets


def targets_of_lists(
    cells: Sequence[str], names: Sequence[str], nothing: str = NOTHING, separator: str = BAR
) -> Targets:
    """Return targets (N, F) from a column that lists the findings of each image: see ``listed_in``.

    ValueError, naming the row, for an unknown finding.
    """
    lists = [listed_in(cell, nothing, separator) for cell in cells]
    for row, own in enumerate(lists):
        for name in own:
            if name not in names:
                known = ", ".join([*names, nothing])
                raise ValueError(f"row {row + 1}: {show(name)}, where one of {known} is expected")
    return targets_of_listed(lists, names)


def _coded(cells: Sequence[object]) -> tuple[list[object], list[int]]:
    """Return the distinct cells, and the place among them of each."""
    known: dict[object, int] = {}
    codes = [known.setdefault(cell, len(known)) for cell in cells]
    return list(known), codes


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
    owned = ClientImages.of(parts)
    owners, present = owned.owners(), int(np.count_nonzero(np.asarray(owned.sizes)))
    # One finding after the other: all at once would take a number for each client and finding.
    known = (np.unique(owners[column[owned.images] != UNKNOWN]) for column in targets.T)
    return [present - len(clients) for clients in known]
