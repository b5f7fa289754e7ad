"""The row of a run in the segmentation table, and the folder of tiles, from files written by hand."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import segmentation_table
from benchmarks.segmentation_table import row, run, write_tiles
from tests.unit.benchmarks.test_harmofl_table import client_row, metrics_row


def write_rows(file: Path, rows: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))


def test_bytes_are_means_over_all_rounds_and_dice_that_of_the_best(tmp_path: Path) -> None:
    metrics = [metrics_row(number, val, server) for number, val, server in ((5, 0.7, 0.8), (10, 0.6, 0.9))]
    silent = {"round": 1, "diagnostics": {}, "bytes_up": 2_000_000, "bytes_down": 1_000_000}
    sent = [metrics[0] | {"bytes_up": 4_000_000, "bytes_down": 1_000_000}]
    sent.append(metrics[1] | {"bytes_up": 6_000_000, "bytes_down": 1_000_000})
    write_rows(tmp_path / "metrics.jsonl", [silent, *sent])
    write_rows(tmp_path / "clients.jsonl", [client_row(5, 1, 0.4), client_row(5, 0, 0.6), client_row(10, 0, 1.0)])
    write_rows(tmp_path / "timings.jsonl", [{"seconds": 3.0}, {"seconds": 4.5}])
    found = row(tmp_path)
    assert found["dice"] == pytest.approx([0.5, 0.4, 0.6, 0.4, 0.8])
    assert (found["bytes_up"], found["bytes_down"], found["seconds_of_rounds"]) == (4_000_000, 1_000_000, 7.5)


def test_a_finished_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(segmentation_table.fedsim, "run", lambda *words, **_: started.append(words))
    (tmp_path / "results.json").write_text('{"status": "finished"}')
    assert run(tmp_path, []) == tmp_path
    assert started == []
    run(tmp_path / "other", ["seed=1"])
    assert started == [("configs/vit_decoder_cells.yaml", "seed=1")]


def test_tiles_lie_in_a_folder_per_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(12, 3, 4, 4)
    data = SimpleNamespace(
        images=images, masks=(images[:, 0] % 2), sites=np.repeat([0, 1], [8, 4]), site_names=("HeLa", "CHO")
    )
    monkeypatch.setattr(segmentation_table, "load_dataset", lambda _: data)
    monkeypatch.setattr(segmentation_table, "TILES", 3)
    root = write_tiles(tmp_path)
    assert sorted(place.name for place in root.iterdir()) == ["CHO", "HeLa"]
    for site, places in (("HeLa", (0, 4, 7)), ("CHO", (8, 10, 11))):
        files = sorted((root / site / "images").iterdir())
        assert [np.array(Image.open(file)).max() for file in files] == list(places)
        assert [np.array(Image.open(root / site / "masks" / f.name)).max() for f in files] == [p % 2 for p in places]
