"""Tables of images: what a row says is what the set holds, and all bad rows are told in one line."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from fedsim.config.data import DataConfig
from fedsim.errors import UserError
from tests.helpers import load_set

pytestmark = pytest.mark.usefixtures("cache")
COLUMNS = {"path": "file", "label": "kind", "site": "ward", "patient": "person", "split": "part"}
PARTS = ("train", "train", "train", "val", "test")


def rows_of(count: int = 60) -> list[dict[str, Any]]:
    """Three wards, two kinds, a patient for every two images of a ward; the red of an image tells its row."""
    return [
        {
            "file": f"scans/{'abc'[number % 3]}/{number:02}.png",
            "kind": ("benign", "malignant")[number // 3 % 2],
            "ward": ("east", "north", "west")[number % 3],
            "person": f"p{number % 3}{number // 6}",
            "part": PARTS[number // 6 % 5],
            "unused": 0.5,
        }
        for number in range(count)
    ]


def write_images(root: Path, rows: list[dict[str, Any]]) -> None:
    for number, row in enumerate(rows):
        (root / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (number, 3, 5)).save(root / row["file"])


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def make(root: Path, rows: list[dict[str, Any]] | None = None, file: str = "labels.csv") -> Path:
    root.mkdir()
    write_images(root, rows_of())
    write_table(root / file, rows or rows_of())
    return root


def load(root: Path, columns: dict[str, str] | None = None, file: str = "labels.csv", **words: Any) -> Any:
    columns = COLUMNS if columns is None else columns
    return load_set("table", root=str(root), file=file, columns=columns, image_size=8, **words)


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


def changed(**cells: dict[int, Any]) -> list[dict[str, Any]]:
    """The rows with some cells replaced, by column and row, counted from 1."""
    rows = rows_of()
    for column, values in cells.items():
        for number, value in values.items():
            rows[number - 1][column] = value
    return rows


WRONG: list[tuple[list[dict[str, Any]], str]] = [
    (changed(kind={7: ""}), r"labels.csv row 7, column kind: found nothing; expected a class: a text or a whole num"),
    (
        changed(file={3: "gone.png"}),
        r"labels.csv row 3, column file: found no file 'gone.png'; expected an image file in",
    ),
    (changed(file={3: " "}), r"row 3, column file: found nothing"),
    (changed(file={3: "scans"}), r"row 3, column file: found no file 'scans'"),
    (changed(part={9: "holdout"}), r"row 9, column part: found 'holdout'; expected one of train, training, val"),
    (changed(ward={2: ""}), r"row 2, column ward: found nothing; expected a site"),
    (changed(ward={2: "1", 4: "1.0"}), r"row 4, column ward: found '1.0' beside '1'"),
    (
        changed(kind={4: "", 5: " "}, file={5: "x", 9: "y"}, part={9: "z", 11: "z"}),
        r"labels.csv, 4 of 60 rows: found row 4, column kind: nothing; row 5, column file: no file 'x'; row 5, column "
        r"kind: nothing; row 9, column file: no file 'y'; row 9, column part: 'z'; and 1 more; expected a class",
    ),
    (changed(kind={19: "cyst"}), r"row 19, column kind: found 'cyst'; expected a class of train: benign, malignant"),
    (
        changed(kind=dict.fromkeys(range(1, 61), "benign")),
        r"labels.csv, column kind: found 1 classes in train; expected",
    ),
]


@pytest.mark.parametrize(("rows", "message"), WRONG)
def test_bad_rows_are_one_line(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(make(tmp_path / "set", rows))
    assert "\n" not in str(caught.value)


def test_a_name_that_two_files_have_is_told(tmp_path: Path) -> None:
    root = make(tmp_path / "set", changed(file={5: "01.png"}))
    Image.new("RGB", (9, 9)).save(root / "01.png".replace("01", "scans/01"))
    with pytest.raises(
        UserError,
        match=r"row 5, column file: found 2 files of the name '01.png', such as .*scans/01.png and .*b/01.png",
    ):
        load(root)


def test_a_row_of_another_length_keeps_the_others_numbers(tmp_path: Path) -> None:
    root = make(tmp_path / "set", changed(kind={8: ""}))
    lines = (root / "labels.csv").read_text().splitlines()
    lines[3] += ",more"
    (root / "labels.csv").write_text("\n".join(lines))
    expected = "2 of 60 rows: found row 3: another number of cells; row 8, column kind: nothing; expected as many cells"
    with pytest.raises(UserError, match=expected):
        load(root)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labels.csv", b"", "found no column file"),
        ("labels.csv", b"file,kind,ward,person,part\n", "labels.csv: found no row; expected a row for every image"),
        ("labels.csv", b"file;kind;ward;person;part\n", "found no column file; expected one of its columns"),
        ("labels.csv", b"file,kind,kind,ward,person,part\n", "found several columns kind"),
        ("labels.csv", b"file,kind,ward,person,part\n\xe4,a,b,c,train\n", "'utf-8' codec can't decode"),
        ("labels.parquet", b"PAR1", "labels.parquet: found .*; expected a .parquet table"),
        ("labels.xlsx", b"PK", "labels.xlsx: found a file .xlsx; expected a table that ends in .tsv, .csv, .parquet"),
        ("labels", b"", "labels: found no column file"),
        ("gone.csv", None, "gone.csv: found no such file; expected a table"),
        (".", None, "found no file, but a folder or device; expected a table"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    root = make(tmp_path / "set")
    if content is not None:
        (root / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load(root, file=file)
    assert "\n" not in str(caught.value)


def test_cells_that_are_no_texts_are_refused(tmp_path: Path) -> None:
    rows = [row | {"kind": [1]} for row in rows_of()]
    with pytest.raises(
        UserError, match=r"labels.parquet, column kind: found cells of type list<.*; expected texts or num"
    ):
        load(make(tmp_path / "set", rows, "labels.parquet"), file="labels.parquet")
    rows = [row | {"kind": 0.5 + number} for number, row in enumerate(rows_of())]
    write_table(tmp_path / "set/labels.parquet", rows)
    with pytest.raises(
        UserError, match=r"60 of 60 rows: found row 1, column kind: 0.5; row 2, column kind: 1.5; .* and 57"
    ):
        load(tmp_path / "set", file="labels.parquet")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"file": None}, "no file with name: table"),
        ({"columns": None}, "no columns with name: table"),
        ({"name": "image_folder"}, "columns with name: image_folder"),
        (
            {"columns": {"label": "kind", "second": "x"}},
            "columns.second: found 'x' with name: table, a table of images",
        ),
        ({"columns": {"label": "kind", "text": "x"}}, "columns.text: found 'x' with name: table"),
        ({"columns": {"score": "kind"}}, "columns.score: found 'kind' with name: table"),
        ({"patient": "a"}, "patient: found 'a' with columns.patient; expected one of them"),
        ({"columns": {"label": "kind"}, "patient": "("}, "patient: found '\\(' .*; expected a regular expression"),
        ({"test_sites": ["a", "a"]}, "test_sites: found .*; expected each once"),
    ],
)
def test_words_that_do_not_fit_are_refused(words: dict[str, Any], message: str) -> None:
    good = {"name": "table", "root": ".", "file": "labels.csv", "columns": COLUMNS}
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate({**good, **words})
    texts = {"name": "text_files", "root": ".", "columns": {"label": "kind", "patient": "p"}}
    with pytest.raises(ValueError, match=r"columns.patient: found 'p' with name: text_files, a table of texts"):
        DataConfig.model_validate(texts)


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
