"""Tables of images: what a row says is what the set holds."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from tests.unit.data.datasets.own_tables import COLUMNS, load, make, rows_of, write_table

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("file", ["labels.csv", "labels.tsv", "labels.parquet", "LABELS.CSV"])
def test_every_row_is_what_it_says(tmp_path: Path, file: str) -> None:
    data = load(make(tmp_path / "set", file=file), file=file)
    assert data.class_names == ("benign", "malignant")
    assert data.site_names == ("east", "north", "west")
    assert data.images[:, 0, 0, 0].tolist() == list(range(60))
    for number, row in enumerate(rows_of()):
        assert data.class_names[data.labels[number]] == row["kind"]
        assert data.site_names[data.sites[number]] == row["ward"]
        assert data.file_names[number] == row["file"]
        part = {"train": data.train, "val": data.val, "test": data.test}[row["part"]]
        assert number in part
    assert len(set(data.groups.tolist())) == len({row["person"] for row in rows_of()})
    assert data.drawn == ()


def test_coded_columns_are_their_cells(tmp_path: Path) -> None:
    """What pandas writes of its categories, and several pieces of a column with codes of their own."""
    root = make(tmp_path / "set", file="labels.parquet")
    whole = pa.parquet.read_table(root / "labels.parquet")
    halves = [part.set_column(1, "kind", part["kind"].dictionary_encode()) for part in (whole[:30], whole[30:])]
    plain = load(root, file="labels.parquet")
    pa.parquet.write_table(pa.concat_tables(halves), root / "labels.parquet", row_group_size=7)
    coded = load(root, file="labels.parquet")
    assert coded.class_names == plain.class_names
    assert coded.labels.tolist() == plain.labels.tolist()


def test_patients_stay_in_one_drawn_split_and_every_site_is_in_each(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    columns = {key: name for key, name in COLUMNS.items() if key != "split"}
    data = load(root, columns)
    assert data.drawn == ("val", "test")
    parts = [set(data.groups[part].tolist()) for part in (data.train, data.val, data.test)]
    assert parts[0].isdisjoint(parts[1] | parts[2])
    assert parts[1].isdisjoint(parts[2])
    for part in (data.train, data.val, data.test):
        assert set(data.sites[part].tolist()) == {0, 1, 2}
    told = load(root, {key: name for key, name in columns.items() if key != "patient"}, patient="(./[0-9])")
    assert len(set(told.groups.tolist())) == 18


def test_an_empty_patient_is_one_by_itself(tmp_path: Path) -> None:
    rows = rows_of()
    for row in rows[:4]:
        row["person"] = ""
    data = load(make(tmp_path / "set", rows))
    assert all(np.count_nonzero(data.groups == data.groups[number]) == 1 for number in range(4))
    assert "4 rows name no person; each counts as one by itself" in data.remarks


def test_numbers_and_truths_are_classes_in_their_order(tmp_path: Path) -> None:
    rows = rows_of()
    for number, row in enumerate(rows):
        row["kind"] = float(number % 11)
        row["ward"] = number % 2 == 0
    data = load(
        make(tmp_path / "set", rows, "labels.parquet"),
        {"path": "file", "label": "kind", "site": "ward"},
        "labels.parquet",
    )
    assert data.class_names == tuple(str(number) for number in range(11))
    assert data.site_names == ("False", "True")


def test_a_name_alone_is_found_in_any_folder_with_or_without_its_suffix(tmp_path: Path) -> None:
    """HAM10000's images lie in two folders and its table names them without suffix; NIH's with it, in twelve."""
    rows = rows_of()
    for number, row in enumerate(rows):
        row["file"] = Path(row["file"]).name if number % 2 else Path(row["file"]).stem
    data = load(make(tmp_path / "set", rows))
    assert data.images[:, 0, 0, 0].tolist() == list(range(60))


def test_whole_paths_and_files_outside_of_the_root(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    rows = rows_of()
    for number, row in enumerate(rows):
        row["file"] = str(root / row["file"]) if number % 2 else row["file"]
    (tmp_path / "set/scans/a/00.png").rename(tmp_path / "outside.png")
    rows[0]["file"] = "../outside.png"
    write_table(root / "labels.csv", rows)
    data = load(root)
    assert data.images[:, 0, 0, 0].tolist() == list(range(60))
    assert data.file_names[:2] == (str(tmp_path / "outside.png"), "scans/b/01.png")


def test_rows_of_one_file_share_its_pixels_and_stay_together(tmp_path: Path) -> None:
    rows = [
        row | {"file": rows_of()[number // 2 * 2]["file"], "person": f"q{number // 5}"}
        for number, row in enumerate(rows_of())
    ]
    columns = {"path": "file", "label": "kind", "patient": "person"}
    data = load(make(tmp_path / "set", rows), columns)
    assert data.images.shape == (30, 3, 8, 8)
    assert data.images[data.pictures, 0, 0, 0].tolist() == [number // 2 * 2 for number in range(60)]
    # Patients 0 and 1 share the file of rows 4 and 5, and so on: two and two are one group.
    assert np.array_equal(data.groups, data.groups[np.arange(60) // 10 * 10])
    assert len(set(data.groups.tolist())) == 6
    assert "60 rows name 30 files; rows of one file stay together" in data.remarks


@pytest.mark.parametrize(
    ("fit", "left", "middle", "top"), [("stretch", 200, 200, 200), ("crop", 100, 200, 200), ("pad", 200, 200, 0)]
)
def test_an_image_is_made_square_as_asked(tmp_path: Path, fit: str, left: int, middle: int, top: int) -> None:
    """A wide image of 200, but for 100 in the left half of its inner half, which is what cropping leaves."""
    (tmp_path / "set").mkdir()
    wide = np.full((32, 64), 200, np.uint8)
    wide[:, 16:32] = 100
    for number in range(20):
        Image.fromarray(wide).save(tmp_path / f"set/{number}.png")
    rows = [{"file": f"{number}.png", "kind": number % 2} for number in range(20)]
    write_table(tmp_path / "set/labels.csv", rows)
    image = load(tmp_path / "set", {"path": "file", "label": "kind"}, fit=fit).images[0, 0]
    found = [int(image[row, column]) for row, column in ((4, 0), (4, 7), (0, 7))]
    assert found == pytest.approx([left, middle, top], abs=8), "but for what bicubic interpolation overshoots"
