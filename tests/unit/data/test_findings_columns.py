"""Columns of findings as published tables have them."""

from typing import Any

import numpy as np
import pytest

from fedsim.data import rarest_findings, target_of, targets_of_columns, targets_of_lists

# As in CheXpert's train.csv.
CHEXPERT = {"Cardiomegaly": ["1.0", "", "0.0", "-1.0"], "Edema": ["-1.0", "1", "", " 0 "]}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, [[1, -1], [-1, 1], [0, -1], [-1, 0]]),
        ({"uncertain": "positive"}, [[1, 1], [-1, 1], [0, -1], [1, 0]]),
        ({"uncertain": "negative"}, [[1, 0], [-1, 1], [0, -1], [0, 0]]),
        ({"blank": "negative"}, [[1, -1], [0, 1], [0, 0], [-1, 0]]),
        ({"uncertain": "positive", "blank": "negative"}, [[1, 1], [0, 1], [0, 0], [1, 0]]),
    ],
)
def test_what_uncertain_and_blank_labels_become(words: dict[str, Any], expected: list[list[int]]) -> None:
    targets = targets_of_columns(CHEXPERT, **words)
    assert targets.dtype == np.float32
    assert targets.tolist() == expected


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (1, 1),
        (0.0, 0),
        (-1.0, -1),
        (None, -1),
        (float("nan"), -1),
        (np.float64(1), 1),
        (True, 1),
        (2, None),
        (b"1", None),
    ],
)
def test_cells_that_are_no_texts(cell: object, expected: int | None) -> None:
    """As a Parquet table has them."""
    assert target_of(cell) == expected


@pytest.mark.parametrize("cell", ["2", "yes", "nan", "1.5", "-2", 2, 0.5])
def test_another_cell_is_named_by_column_and_row(cell: object) -> None:
    with pytest.raises(ValueError, match=rf"column Edema, row 2: {cell!r}, where 1, 0, -1 or nothing is expected"):
        targets_of_columns({"Mass": ["1", "0"], "Edema": ["0", cell]})


def test_lists_as_nih_has_them() -> None:
    cells = ["Mass|Edema", "No Finding", "Edema"]
    assert targets_of_lists(cells, ["Edema", "Mass", "Hernia"]).tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]
    with pytest.raises(ValueError, match=r"row 3: 'Oedema', where one of Edema, Mass, No Finding is expected"):
        targets_of_lists([*cells[:2], "Oedema"], ["Edema", "Mass"])


def test_the_rarest_finding_stands_for_an_image() -> None:
    targets = np.array([[1, 1, 0], [1, 0, -1], [1, 0, 0], [0, 1, 1], [0, 0, 0], [-1, -1, -1]], np.float32)
    # Present in 3, 2 and 1 images; the last two images have none.
    assert rarest_findings(targets).tolist() == [1, 0, 0, 2, 3, 3]
