"""The row of a run in the PRR-FL table, from rounds written by hand."""

from typing import Any

import pytest

from benchmarks.prrfl_table import COLUMNS, row


def spreads(val_f1: float, test_f1: float, worst: float, drop: float) -> dict[str, Any]:
    """A round; what the table must not read is 9."""
    other = {"mean": 9.0, "worst": 9.0}
    f1 = {"before": other, "after": {"mean": test_f1, "worst": worst}, "drop": {"mean": drop, "worst": 9.0}}
    auroc = {"before": other, "after": {"mean": test_f1 + 0.1, "worst": 9.0}, "drop": other}
    return {
        "val": {"f1": {"before": other, "after": {"mean": val_f1, "worst": 9.0}, "drop": other}, "auroc": auroc},
        "test": {"f1": f1, "auroc": auroc},
    }


def test_validation_chooses_the_round_and_the_drop_is_over_all() -> None:
    found = row([spreads(0.5, 0.9, 0.8, 0.3), spreads(0.7, 0.6, 0.2, -0.1), spreads(0.7, 0.4, 0.1, 0.1)])
    assert list(found) == list(COLUMNS)
    assert list(found.values()) == pytest.approx([0.6, 0.2, 0.7, 0.1])
