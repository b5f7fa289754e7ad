"""Runs with ``privacy.observe: false``, which hide bytes and client steps: whoever reads a run folder goes on."""

from csv import DictReader
from pathlib import Path

import pandas as pd
import pytest

from fedsim.results.comparing import Wish, compare
from fedsim.results.figures.curves import score_figure
from fedsim.results.reading import load
from fedsim.results.tables import csv, markdown, shown
from fedsim.verbs.compare import report
from tests.unit.results.test_comparing import write_runs

SCORES = {"fedavg": [0.5, 0.6], "deer": [0.7, 0.8]}
NOTE = "bytes and client steps are hidden where privacy.observe is false"


def hiding(folder: Path, is_mixed: bool) -> list[Path]:
    """Runs of two methods that hide, or one of the two alone."""
    if not is_mixed:
        return write_runs(folder, SCORES, per_round=(None, None), digests={"cohorts": None})
    hidden = write_runs(folder, {"deer": SCORES["deer"]}, per_round=(None, None), digests={"cohorts": None})
    return write_runs(folder, {"fedavg": SCORES["fedavg"]}) + hidden


@pytest.mark.parametrize("is_mixed", [False, True])
def test_they_are_compared_without_what_they_hide(tmp_path: Path, is_mixed: bool) -> None:
    results = load(*hiding(tmp_path / "runs", is_mixed))
    (table,) = compare(results, Wish(reach=0.6))
    numbers = table.numbers.set_index("contender")
    assert numbers["mean"].to_dict() == pytest.approx({"fedavg": 0.55, "deer": 0.75})
    hidden = ["bytes_up", "bytes_down", "client_steps", "mean_at_equal_bytes"]
    hidden += ["bytes_to_reach", "bytes_seeds_that_reach"]
    assert numbers.loc["deer", hidden].isna().all()
    assert pd.isna(numbers.loc["fedavg", "bytes_up"]) != is_mixed
    assert NOTE in table.notes
    text = markdown([shown(table, Wish(reach=0.6))])
    assert "| deer | 2 | 0.750 ± 0.071 |" in text
    assert "(0 of 2)" not in text
    rows = {row["contender"]: row for row in DictReader(csv([table]).splitlines())}
    assert {name: row["bytes_seeds_that_reach"] for name, row in rows.items()} == {
        "fedavg": "1" if is_mixed else "",
        "deer": "",
    }
    rounds = score_figure(results, table).axes[0]
    assert [len(line.get_xdata()) for line in rounds.lines] == [2, 2]


@pytest.mark.parametrize("is_mixed", [False, True])
def test_they_have_a_page(tmp_path: Path, is_mixed: bool) -> None:
    page = report(hiding(tmp_path / "runs", is_mixed), Wish(), tmp_path / "page.html").read_text()
    assert NOTE in page
    assert ("MB in all" in page) == is_mixed


def test_nothing_is_told_of_runs_that_hide_nothing(tmp_path: Path) -> None:
    (table,) = compare(load(*write_runs(tmp_path, SCORES)), Wish())
    assert NOTE not in table.notes
