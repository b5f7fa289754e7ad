"""The row of a run in the PRR-FL table, from rounds written by hand."""

from typing import Any

import pytest

from benchmarks.prrfl_table import COLUMNS, row


def measured(val_f1: float, test_f1: float, worst: float, drop: float, **exchanged: float) -> dict[str, Any]:
    """A round; what the table must not read is 9."""
    other = {"mean": 9.0, "worst": 9.0}

    def split(mean: float) -> dict[str, Any]:
        f1 = {"before": other, "after": {"mean": mean, "worst": worst}, "drop": other}
        return {"f1": f1, "auroc": {"before": other, "after": {"mean": mean + 0.1, "worst": 9.0}, "drop": other}}

    found = {"clients": {"val": split(val_f1), "test": split(test_f1)}, "retrogress": {"val": 9.0, "test": drop}}
    return found | {f"retrogress_{name}": {"val": 9.0, "test": value} for name, value in exchanged.items()}


def test_validation_chooses_the_round_and_the_drop_is_over_all() -> None:
    found = row([measured(0.5, 0.9, 0.8, 0.3), measured(0.7, 0.6, 0.2, -0.1), measured(0.7, 0.4, 0.1, 0.1)])
    assert list(found) == list(COLUMNS)
    assert list(found.values()) == pytest.approx([0.6, 0.2, 0.7, 0.1, 0.1])


def test_models_that_only_travel_have_a_drop_of_their_own() -> None:
    found = row([measured(0.5, 0.9, 0.8, 0.0, exchanged=0.2), measured(0.4, 0.6, 0.2, 0.0, exchanged=0.3)])
    assert list(found.values())[3:] == pytest.approx([0.0, 0.25])
