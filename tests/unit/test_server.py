"""Which round is the best, when to stop, and that a saved model measures as it did in training."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from fedsim.checkpoint import Progress
from fedsim.config import load_config
from fedsim.server import evaluate_run, note_evaluation, out_of_patience, run
from tests.distributed.runs import write_config, write_masked_config


def outcomes(best_by: str, values: list[float]) -> tuple[list[bool], Progress]:
    progress = Progress()
    found = []
    for round, value in enumerate(values, start=1):
        record: Any = SimpleNamespace(row={"round": round, "val": {best_by: value}, "test": {best_by: -value}})
        found.append(note_evaluation(best_by, progress, record))
    return found, progress


@pytest.mark.parametrize(
    ("best_by", "values", "better", "best_round"),
    [
        ("accuracy", [0.5, 0.7, 0.7, 0.6], [True, True, False, False], 2),
        ("loss", [2.0, 1.0, 3.0], [True, True, False], 2),
        ("auroc", [math.nan, 0.4, math.nan], [False, True, False], 2),
    ],
)
def test_the_best_round(best_by: str, values: list[float], better: list[bool], best_round: int) -> None:
    found, progress = outcomes(best_by, values)
    assert found == better
    assert progress.best_round == best_round
    assert progress.best_metrics["test"] == {best_by: -values[best_round - 1]}


def test_patience_counts_evaluations_without_a_better_one() -> None:
    config: Any = SimpleNamespace(evaluate=SimpleNamespace(patience=2))
    assert not out_of_patience(config, outcomes("accuracy", [0.5, 0.4])[1])
    assert out_of_patience(config, outcomes("accuracy", [0.5, 0.4, 0.5])[1])
    config.evaluate.patience = None
    assert not out_of_patience(config, outcomes("accuracy", [0.5, 0.4, 0.5])[1])


@pytest.mark.parametrize("write", [write_config, write_masked_config])
def test_saved_models_measure_as_they_did_in_training(write: Callable[[Path], Path], tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    results = run(config, tmp_path / "run", resume=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == list(range(1, config.rounds + 1))
    for which, round in (("best", results["best_round"]), ("last", config.rounds)):
        row = rows[round - 1]
        assert evaluate_run(tmp_path / "run", which) == {"val": row["val"], "test": row["test"]}


def test_predictions_are_drawn_for_images_with_masks(tmp_path: Path) -> None:
    run(load_config(write_masked_config(tmp_path), ["rounds=1"]), tmp_path / "run", resume=False)
    with Image.open(tmp_path / "run" / "predictions.png") as picture:
        width, height = picture.size
        assert (width, height > 3 * 100) == (1584, True)  # three sites, each a row of four images, masks, predictions
        colours = picture.convert("RGB").getcolors(1 << 24) or []
    # Masks are tinted blue over grey images.
    assert sum(number for number, (red, _, blue) in colours if blue > red + 40) > 1000


def test_a_finished_run_is_shown_again_not_trained_again(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), ["rounds=1"])
    first = run(config, tmp_path / "run", resume=False)
    before = (tmp_path / "run" / "timings.jsonl").read_bytes()
    assert run(config, tmp_path / "run", resume=True) == first
    assert (tmp_path / "run" / "timings.jsonl").read_bytes() == before
