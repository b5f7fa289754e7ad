"""Tables of images with mistakes: all bad rows are told in one line, and so is what is no table."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedsim.config.data import DataConfig
from fedsim.errors import UserError
from tests.unit.data.datasets.own_tables import COLUMNS, load, make, rows_of, write_table

pytestmark = pytest.mark.usefixtures("cache")


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
        ({"external_sites": ["a", "a"]}, "external_sites: found .*; expected each once"),
    ],
)
def test_words_that_do_not_fit_are_refused(words: dict[str, Any], message: str) -> None:
    good = {"name": "table", "root": ".", "file": "labels.csv", "columns": COLUMNS}
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate({**good, **words})
    texts = {"name": "text_files", "root": ".", "columns": {"label": "kind", "patient": "p"}}
    with pytest.raises(ValueError, match=r"columns.patient: found 'p' with name: text_files, a table of texts"):
        DataConfig.model_validate(texts)
