"""The rows of DEeR's table, from rows written by hand, and that the privacy of a row is a config's."""

from typing import Any

import pytest

from benchmarks.deer_table import BOUND, CHANGES, COLUMNS, DELTA, EPSILONS, METHODS, ROUNDS, cells, figures, privacy
from fedsim.configure import load_config
from tests.distributed.runs import ROOT


def metrics_row(scores: tuple[float, float], deviations: dict[str, float], **more: Any) -> dict[str, Any]:
    """What the table must not read is 9."""
    test = {"balanced_accuracy": scores[0], "auroc": scores[1], "accuracy": 9.0}
    phases = {name: {"aggregation_deviation": value, "client_drift": 9.0} for name, value in deviations.items()}
    return {"val": {"balanced_accuracy": 9.0}, "test": test, "diagnostics": {**phases, **more}}


def test_figures_are_the_last_rounds_and_the_mean_deviation_of_all_phases() -> None:
    rows = [metrics_row((0.9, 0.9), {"b": 0.0, "a": 0.4}), metrics_row((0.6, 0.7), {"b": 0.2, "a": 0.2}, rank=9)]
    assert figures(rows) == pytest.approx([0.6, 0.7, 0.2])


def test_cells() -> None:
    rows = [dict.fromkeys(COLUMNS, value) for value in (0.5, 0.6, 0.7)]
    assert cells(rows) == ["0.600 ± 0.100"] * len(COLUMNS)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("method", METHODS.values())
def test_a_run_is_a_config(method: str, epsilon: str) -> None:
    words = [f"algorithm.name={method}", privacy(epsilon, BOUND), *CHANGES]
    config = load_config(ROOT / "configs/quickstart.yaml", words)
    assert (config.rounds, config.evaluate.every) == (ROUNDS, ROUNDS)
    if epsilon == "none":
        assert config.privacy is None
    else:
        assert config.privacy is not None
        assert config.privacy.mechanism is not None
        assert (config.privacy.mechanism.name, config.privacy.mechanism.bound) == ("record", BOUND)
        assert (config.privacy.epsilon, config.privacy.delta) == (float(epsilon), DELTA)
