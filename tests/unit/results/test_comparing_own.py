"""Tables of the clients' own models, for methods that leave each client one."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest

from fedsim.errors import UserError
from fedsim.results.comparing import Wish
from fedsim.results.figures.clients import own_scores
from fedsim.results.flamby import flamby
from fedsim.results.reading import load
from fedsim.results.tables import markdown, shown
from tests.unit.results.test_comparing import one_table, write_run


def write_own_scores(run: Path, own: list[dict[str, list[float]]]) -> Path:
    """Say of a run's rounds what the clients' own models score: validation and test of each metric.

    Both of its clients have the mean of the test.
    """
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row, scores in zip(rows, own, strict=True):
        row["diagnostics"]["clients"] = {
            split: {name: {"before": {"mean": 9.0}, "after": {"mean": pair[at]}} for name, pair in scores.items()}
            for at, split in enumerate(("val", "test"))
        }
    clients = [
        {
            "round": number,
            "client": client,
            "own": {"after": {"test": {name: pair[1] for name, pair in scores.items()}}},
        }
        for number, scores in enumerate(own, start=1)
        for client in (0, 1)
    ]
    for name, lines in (("metrics", rows), ("clients", clients)):
        (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return run


def test_the_clients_own_models_are_compared_at_their_own_best_round(tmp_path: Path) -> None:
    """Their validation chooses the second round; that of the server's model, the first. Less of a loss is better."""
    runs = []
    for method, gain in (("fedavg", 0.0), ("ditto", 0.2)):
        for seed in range(3):
            rounds = [
                {"accuracy": [0.3, 0.9], "loss": [0.1, 1 - gain]},
                {"accuracy": [0.4, 0.5 + gain + seed / 100], "loss": [0.2, 9.0]},
            ]
            runs.append(write_own_scores(write_run(tmp_path / f"{method}{seed}", method, seed, [0.8, 0.7]), rounds))
    table = one_table(runs, metrics=("clients.accuracy",), reach=0.35)
    assert list(table.numbers["mean"]) == pytest.approx([0.51, 0.71])
    assert (table.best, list(table.numbers["bytes_to_reach"])) == ("ditto", [4e6, 4e6])
    assert list(table.numbers["mean_at_equal_bytes"]) == pytest.approx([0.51, 0.71])
    assert "the mean over the round's clients, each one's own model" in markdown([shown(table, Wish(reach=0.35))])
    assert own_scores(load(*runs), table, "accuracy")["ditto"].tolist() == [0.7, 0.7, 0.71, 0.71, 0.72, 0.72]
    rows = pd.read_csv(io.StringIO(flamby(load(*runs), [table])))
    assert rows["Test"].tolist() == ["client_test_0", "client_test_1"] * 6
    assert rows["Metric"].tolist()[-2:] == [0.72, 0.72]
    table = one_table(runs, metrics=("clients.loss",))
    assert (table.best, list(table.numbers["mean"])) == ("ditto", pytest.approx([1.0, 0.8]))
    with pytest.raises(UserError, match=r"--metric: found clients.f1; expected .*clients.accuracy"):
        one_table(runs, metrics=("clients.f1",))
