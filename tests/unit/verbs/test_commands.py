"""The command lines of sweep, compare and report."""

import io
from pathlib import Path
from typing import Any

import pandas as pd
from typer.testing import CliRunner

import launch
from tests.unit.results.test_comparing import CLEAR, write_run, write_runs
from tests.unit.verbs.test_sweep_plan import write_sweep


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(launch.app, [str(word) for word in arguments])


def test_compare_prints_tables_and_draws(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", CLEAR)
    figures = tmp_path / "figures"
    done = invoke("compare", *runs, "--format", "csv", "--metric", "loss", "--metric", "accuracy", "--figures", figures)
    assert done.exit_code == 0, done.output
    numbers = pd.read_csv(io.StringIO(done.stdout))
    assert numbers["metric"].tolist() == ["loss", "loss", "accuracy", "accuracy"]
    assert numbers["is_best"].tolist() == [False, True, False, True]
    assert len(list(figures.glob("*_scores.pdf"))) == 2
    assert "0_loss_clients: not drawn, for these runs lack what it shows: evaluate.clients: true" in done.stderr
    assert "**0.806 ± 0.015**" in invoke("compare", *runs).stdout
    close = write_runs(tmp_path / "close", {"fedavg": [0.5, 0.6, 0.7], "deer": [0.6, 0.7, 0.72]})
    assert "none in bold" in invoke("compare", *close).stdout
    assert "in bold: its difference" in invoke("compare", *close, "--level", "0.2").stdout


def test_report_writes_a_page(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", CLEAR)
    page = tmp_path / "page.html"
    done = invoke("report", *runs, "--out", page, "--metric", "loss")
    assert (done.exit_code, done.stdout) == (0, f"{page}\n")
    assert "deer is best, with loss 0.194 ± 0.015 on the test." in page.read_text()
    assert invoke("report", runs[0]).exit_code == 0
    assert (runs[0] / "report.html").is_file()
    done = invoke("report", *runs)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "--out: found nothing, and 10 folders" in done.stderr


def test_what_cannot_be_compared_ends_with_one_line(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, {"fedavg": [0.5]})
    other = write_run(tmp_path / "other", "deer", 0, [0.5], digests={"test": "x"})
    done = invoke("compare", *runs, other)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "another split of test" in done.stderr
    assert invoke("compare", *runs, other, "--other-data").exit_code == 0


def test_status_lists_the_cells_and_runs_nothing(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, grid={"algorithm.name": ["fedavg", "deer"], "seed": [1]})
    done = invoke("sweep", file, "--out", tmp_path / "out", "--status")
    assert done.exit_code == 0, done.output
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["0", "fedavg_seed1", "missing"],
        ["1", "deer_seed1", "missing"],
        ["0", "of", "2", "cells", "done"],
    ]
    assert not (tmp_path / "out").exists()


def test_an_index_goes_with_nothing_that_it_would_ignore(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, grid={"seed": [1]})
    for words in (["--status"], ["--ranks", "2"]):
        done = invoke("sweep", file, "--out", tmp_path / "out", "--index", "0", *words)
        assert done.exit_code == 2
        assert "--index: found 0 with --status or --ranks" in done.stderr
