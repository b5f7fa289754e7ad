"""The row of a run in the HarmoFL table, from rows written by hand."""

from typing import Any

import pytest

from benchmarks.harmofl_table import COLUMNS, figures


def metrics_row(round: int, val: float, server: float) -> dict[str, Any]:
    """What the table must not read is 9."""
    spread = {"before": {"mean": 9.0}, "after": {"mean": val, "worst": 9.0}}
    clients = {"val": {"dice": spread, "iou": {}}, "test": {}}
    return {"round": round, "diagnostics": {"clients": clients}, "val": {"dice": 9.0}, "test": {"dice": server}}


def client_row(round: int, client: int, dice: float) -> dict[str, Any]:
    own = {"before": {"test": {"dice": 9.0}}, "after": {"val": {"dice": 9.0}, "test": {"dice": dice, "iou": 9.0}}}
    return {"round": round, "client": client, "own": own}


def test_validation_chooses_the_round_and_sites_stand_in_their_order() -> None:
    metrics = [metrics_row(5, 0.6, 0.9), metrics_row(10, 0.7, 0.8), metrics_row(15, 0.65, 1.0)]
    tests = {5: [1.0] * 4, 10: [0.8, 0.2, 0.6, 0.4], 15: [1.0] * 4}
    clients = [client_row(round, client, tests[round][client]) for round in tests for client in (3, 0, 2, 1)]
    found = dict(zip(COLUMNS, figures(metrics, clients), strict=True))
    assert found.pop("mean of the sites") == pytest.approx(0.5)
    assert list(found.values()) == [0.2, 0.8, 0.2, 0.6, 0.4, 0.8]
