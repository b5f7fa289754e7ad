"""images.csv: which image of which file is in which split and at which client."""

import csv
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsim.build import build_simulation
from fedsim.comm.group import open_group
from fedsim.runfolder import members, partition
from fedsim.runfolder.members import write_members
from tests.helpers import TINY_VIT, make_config, simulate

HOSPITALS = ("Bern", "Graz", "Ulm")


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "images.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("partition", [{"name": "sites"}, {"name": "iid"}])
def test_every_image_has_its_row(tmp_path: Path, partition: dict[str, Any]) -> None:
    for value, hospital in enumerate(HOSPITALS):
        for name in ("a", "b"):
            (tmp_path / "set" / hospital / name).mkdir(parents=True)
            for number in range(20):
                image = Image.new("RGB", (9, 9), (value, number, 0))
                image.save(tmp_path / "set" / hospital / name / f"p{number // 2}_{number}.png")
    data = {"name": "image_folder", "root": str(tmp_path / "set"), "image_size": 14, "patient": ".*p[0-9]+"}
    config = make_config(data=data, model=TINY_VIT, clients={"count": 3, "partition": partition})
    sim = build_simulation(config, open_group())
    write_members(sim, tmp_path)
    rows = rows_of(tmp_path)
    assert [row["index"] for row in rows] == [str(index) for index in range(120)]
    for row in rows:
        hospital, name, file = row["file"].split("/")
        red, green, _ = sim.dataset.images[int(row["index"]), :, 0, 0].tolist()
        assert (hospital, name) == (row["site"], row["label"])
        assert file == f"p{green // 2}_{green}.png"
        assert HOSPITALS[red] == hospital
        if partition["name"] == "sites":
            assert row["client"] == str(red)
    trained = {int(row["index"]): int(row["client"]) for row in rows if row["split"] == "train"}
    assert [sorted(index for index, client in trained.items() if client == own) for own in range(3)] == [
        sorted(part.tolist()) for part in sim.parts
    ]
    groups = Counter((row["group"], row["split"]) for row in rows)
    assert set(groups.values()) == {2}
    assert len(groups) == 60, "two images of a patient are in one split"
    clients = {(row["group"], row["client"]) for row in rows if row["split"] == "train"}
    assert len(clients) == len({group for group, _ in clients}), "and at one client"


def test_what_is_not_known_stays_empty(tmp_path: Path) -> None:
    sim = simulate([3, 0, 2], 2)
    write_members(sim, tmp_path)
    rows = rows_of(tmp_path)
    assert len(rows) == len(sim.dataset.labels)
    assert {(row["file"], row["site"], row["group"]) for row in rows} == {("", "", "")}
    assert {row["client"] for row in rows if row["split"] == "train"} == {"0", "2"}
    assert np.bincount([int(row["client"]) for row in rows if row["split"] == "train"]).tolist() == [3, 0, 2]


def test_rows_are_the_same_however_many_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sim, written = simulate([3, 0, 2], 2), set()
    for number in (1, 5, 2**16):
        monkeypatch.setattr(members, "ROWS_AT_ONCE", number)
        write_members(sim, tmp_path)
        written.add((tmp_path / "images.csv").read_bytes())
    assert len(written) == 1


def test_many_clients_leave_a_small_table_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "MOST_ROWS", 3)
    monkeypatch.setattr(partition, "MOST_BARS", 2)
    sim = simulate([3, 0, 2, 4, 1, 1, 1], 2)
    log: Any = SimpleNamespace(folder=tmp_path, message=str)
    partition.describe_partition(sim, log)
    table = json.loads((tmp_path / "partition.json").read_text())
    assert table["num_clients"] == 7
    assert [(row["client"], row["n"]) for row in table["clients"]] == [(0, 3), (3, 4), (6, 1)]
    assert table["sha256"]["clients"] == partition.split_digests(sim.dataset, sim.config, sim.parts)["clients"]
    with Image.open(tmp_path / "partition.png") as picture:
        assert picture.format == "PNG"
