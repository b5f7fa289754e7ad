"""Figures of runs: which there are, in which formats, and that the numbers of the runs are what is drawn."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedsim.errors import UserError
from fedsim.results.comparing import Comparison, Wish, compare
from fedsim.results.figures.clients import client_figure, partition_figure
from fedsim.results.figures.curves import DEVIATIONS, EPSILON, RETROGRESS, round_figure, score_figure
from fedsim.results.figures.drawing import FIGURES, draw
from fedsim.results.figures.style import COLOURS
from fedsim.results.flamby import flamby
from fedsim.results.reading import Results, load
from tests.unit.results.test_comparing import DIGESTS, write_runs

BEGINNINGS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
PER_CLASS = ((3, 1), (0, 4))


def write_whole_runs(folder: Path) -> list[Path]:
    """Runs of two methods and two seeds that have all there is to draw."""
    runs = write_runs(folder, {"fedavg": [0.5, 0.6], "deer": [0.7, 0.8]})
    for run in runs:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            row["diagnostics"]["retrogress"] = {"val": 0.0, "test": row["round"] / 10}
            row["epsilon"] = row["round"] / 2
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        own = [
            {"round": 1, "phase": "b", "client": one, "own": {"after": {"test": {"f1": value}}}}
            for one, value in enumerate((0.25, 0.75, None))
        ]
        (run / "clients.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
        clients = [{"client": one, "n": 4, "per_class": counts} for one, counts in enumerate(PER_CLASS)]
        table = {"classes": ["no", "yes"], "clients": clients, "sha256": DIGESTS}
        (run / "partition.json").write_text(json.dumps(table))
    return runs


def measure_at_the_end(runs: Sequence[Path], best_rounds: Sequence[int]) -> None:
    """Make runs such that measured the test once, of their best rounds."""
    for run, best in zip(runs, best_rounds, strict=True):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        content = "".join(json.dumps({**row, "test": None}) + "\n" for row in rows)
        (run / "metrics.jsonl").write_text(content)
        ended = json.loads((run / "results.json").read_text())
        (run / "results.json").write_text(json.dumps({**ended, "best_round": best}))


def read(runs: list[Path], **words: Any) -> tuple[Results, Comparison]:
    results = load(*runs)
    return results, compare(results, Wish(**words))[0]


def test_each_table_has_its_figures_in_all_formats(tmp_path: Path) -> None:
    results = load(*write_whole_runs(tmp_path / "runs"))
    tables = compare(results, Wish(metrics=("accuracy", "loss")))
    assert draw(results, tables, tmp_path / "figures") == []
    stems = [f"{place}_{name}_{kind}" for place, name in enumerate(("accuracy", "loss")) for kind in FIGURES]
    files = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert sorted(files) == sorted(f"{stem}.{form}" for stem in stems for form in BEGINNINGS)
    assert all(content.startswith(BEGINNINGS[name[-3:]]) for name, content in files.items())
    draw(results, tables[:1], tmp_path / "again")
    for form in sorted(BEGINNINGS):
        name = f"0_accuracy_scores.{form}"
        assert (tmp_path / "again" / name).read_bytes() == files[name]


def test_what_runs_lack_is_told_and_not_drawn(tmp_path: Path) -> None:
    results, table = read(write_runs(tmp_path / "runs", {f"m{number}": [0.5, 0.6] for number in range(10)}))
    lines = draw(results, [table], tmp_path / "figures")
    assert [line.partition(":")[0] for line in lines] == ["0_accuracy_clients", "0_accuracy_partition"]
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"0_accuracy_scores", "0_accuracy_rounds"}


def test_curves_are_means_over_seeds(tmp_path: Path) -> None:
    figure = score_figure(*read(write_whole_runs(tmp_path)))
    rounds, costs, seconds = figure.axes
    for panel, x in ((rounds, [1, 2]), (costs, [2, 4]), (seconds, [2, 4])):
        first, second = panel.get_lines()
        assert first.get_xdata().tolist() == pytest.approx(x)
        assert first.get_ydata().tolist() == pytest.approx([0.45, 0.55])
        assert second.get_ydata().tolist() == pytest.approx([0.65, 0.75])
        band = panel.collections[0].get_paths()[0].vertices[:, 1]
        assert (band.min(), band.max()) == pytest.approx((0.45 - np.sqrt(0.005), 0.55 + np.sqrt(0.005)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fedavg", "deer"]


def test_what_rounds_tell_beside_scores(tmp_path: Path) -> None:
    figure = round_figure(*read(write_whole_runs(tmp_path)))
    found = {panel.get_ylabel(): panel.get_lines()[0].get_ydata().tolist() for panel in figure.axes}
    assert found[RETROGRESS] == pytest.approx([0.1, 0.2])
    assert found[DEVIATIONS] == pytest.approx([0.45, 0.55])  # as write_run has it: the score
    assert found[EPSILON] == pytest.approx([0.5, 1.0])


def test_clients_and_what_they_hold(tmp_path: Path) -> None:
    results, table = read(write_whole_runs(tmp_path))
    (axes,) = client_figure(results, table).axes
    dots = [line.get_xdata().tolist() for line in axes.get_lines() if line.get_marker() == "."]
    assert dots == [[0.25, 0.25, 0.75, 0.75]] * 2
    (axes,) = partition_figure(results, table).axes  # the four runs have one partition
    assert [bar.get_width() for bar in axes.patches] == [3, 0, 1, 4]


def test_scores_of_the_end_alone_are_no_curve(tmp_path: Path) -> None:
    """Each seed has one in its own best round, and a line through those would be nobody's."""
    runs = write_whole_runs(tmp_path)
    measure_at_the_end(runs, (1, 2, 2, 1))
    assert score_figure(*read(runs)) is None


def test_a_contender_has_one_colour_in_all_figures(tmp_path: Path) -> None:
    """Also where another one before it has nothing to draw, or is in another table alone."""
    runs = write_whole_runs(tmp_path)
    measure_at_the_end(runs[:2], (1, 2))
    for run in runs[:2]:
        (run / "clients.jsonl").write_text("")
    runs += write_runs(tmp_path / "other", {"prox": [0.5], "deer": [0.6]}, clients={"count": 3})
    results = load(*runs)
    tables = compare(results, Wish(per=("clients.count",)))
    lines = [line for one in tables for line in score_figure(results, one).axes[0].get_lines()]
    (axes,) = client_figure(results, tables[0]).axes
    dots = [line for line in axes.get_lines() if line.get_marker() == "." and len(line.get_xdata())]
    places = [COLOURS.index(line.get_color()) for line in [*lines, *dots]]
    # deer has a curve, prox and deer have one each, deer has dots.
    assert places == [1, 2, 1, 1]


def test_of_very_many_clients_bars_stand_where_they_are(tmp_path: Path) -> None:
    runs = write_whole_runs(tmp_path)
    for run in runs:
        table = json.loads((run / "partition.json").read_text())
        clients = [{**row, "client": 500 * row["client"]} for row in table["clients"]]
        (run / "partition.json").write_text(json.dumps({**table, "num_clients": 1000, "clients": clients}))
    (axes,) = partition_figure(*read(runs)).axes
    assert sorted({bar.get_y() + bar.get_height() / 2 for bar in axes.patches}) == [0, 500]


def test_rows_of_flamby(tmp_path: Path) -> None:
    runs = write_whole_runs(tmp_path)
    for run in runs:
        text = (run / "metrics.jsonl").read_text().replace('"accuracy"', '"f1"')
        (run / "metrics.jsonl").write_text(text)
        ended = json.loads((run / "results.json").read_text())
        ended |= {"test": {"f1": 0.625}, "val": {"f1": 0.5}, "best_by": "f1"}
        (run / "results.json").write_text(json.dumps(ended))
    whole, table = read(runs)
    with pytest.raises(UserError, match="--format flamby: found 2 tables"):
        flamby(whole, [table, table])
    found = pd.read_csv(io.StringIO(flamby(whole, [table])))
    assert found.columns[:4].tolist() == ["Test", "Metric", "Method", "seed"]
    own = found[(found["Method"] == "deer") & (found["seed"] == 1)]
    assert dict(zip(own["Test"], own["Metric"], strict=True)) == {
        "client_test_0": 0.25,
        "client_test_1": 0.75,
        "Pooled Test": 0.625,
    }
