"""A notebook in Jupyter's own kernel runs two methods through ``fedsim.run``, plots them, and has widgets."""

from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import Block, blocks, environment, make_place
from tests.unit.results.test_comparing import write_runs

needed = "make test installs it; the notebook test runs in a Jupyter kernel"
nbclient = pytest.importorskip("nbclient", reason=f"nbclient is missing: {needed}")
nbformat = pytest.importorskip("nbformat", reason=f"nbformat is missing: {needed}")
pytest.importorskip("ipykernel", reason=f"ipykernel is missing: {needed}")
pytest.importorskip("ipywidgets", reason=f"ipywidgets is missing: {needed}")

ROOT = Path(__file__).resolve().parents[2]
PLOT = """
import matplotlib.pyplot as plt
for name, run in runs.items():
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    plt.plot([row["round"] for row in rows], [row["val"]["accuracy"] for row in rows], label=name)
plt.legend()
plt.show()
"""
WIDGET = """
import comm, ipywidgets
slider = ipywidgets.IntSlider(value=3)
assert slider.comm is not None and comm.create_comm is not None
slider
"""
READ = """
import sys, time
started = time.perf_counter()
from fedsim import results
found = results.load(*runs)
print(f"{time.perf_counter() - started:.2f} s, imports included")
assert not {"torch", "fedsim.comm"} & set(sys.modules)
assert len(found.runs) == 3 and len(found.rounds) == 6
"""
MISTAKE = "fedsim.run(config, 'train.lr=much')"


def outputs(cell: Any, kind: str) -> list[Any]:
    return [output for output in cell.outputs if output.output_type == kind]


@pytest.mark.slow
def test_a_notebook_runs_two_methods_and_plots_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_place(tmp_path / "place")
    page: list[Block] = list(blocks((ROOT / "docs" / "python.md").read_text()))
    methods = next(block.text for block in page if "for name in (" in block.text)
    for name, value in environment(place).items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(text) for text in (methods, "%matplotlib inline\n" + PLOT, WIDGET, MISTAKE)]
    client = nbclient.NotebookClient(
        book, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(place)}}, allow_errors=True
    )
    client.execute()

    run, plot, widget, mistake = book.cells
    shown = "".join(output.text for output in outputs(run, "stream"))
    assert [output.evalue for cell in (run, plot, widget) for output in outputs(cell, "error")] == []
    assert shown.count("round 2/2") == 2, "rank 0's lines are in the cell"
    assert "fedavg [" in shown
    assert any("image/png" in output.data for output in outputs(plot, "display_data"))
    assert any("application/vnd.jupyter.widget-view+json" in found.data for found in outputs(widget, "execute_result"))
    (error,) = outputs(mistake, "error")
    assert error.ename == "UserError"
    assert error.evalue.startswith("command line: train.lr: found 'much'")


def test_a_notebook_reads_three_runs_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_place(tmp_path / "place")
    for name, value in environment(place).items():
        monkeypatch.setenv(name, value)
    runs = [str(run) for run in write_runs(tmp_path / "runs", {"fedavg": [0.5, 0.6, 0.7]})]
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(f"runs = {runs}\n{READ}")]
    nbclient.NotebookClient(
        book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(place)}}
    ).execute()
    print("three runs:", *(output.text for output in outputs(book.cells[0], "stream")))
