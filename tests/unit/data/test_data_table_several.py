"""A set of several tables, one for each split, and files that rows call by several names."""

from pathlib import Path
from typing import Any

import pytest

from fedsim.config.data import DataConfig
from fedsim.errors import UserError
from tests.unit.data.datasets.own_tables import COLUMNS, load, make, rows_of, write_table

pytestmark = pytest.mark.usefixtures("cache")
WITHOUT = {key: name for key, name in COLUMNS.items() if key != "split"}
FILES = {"train": "train.csv", "val": "valid.csv", "test": "test.tsv"}


def make_three(root: Path, **changes: Any) -> Path:
    """The table of sixty images, cut into three by its column of splits."""
    make(root)
    rows = rows_of()
    for name, value in changes.items():
        column, number = name.rsplit("_", 1)
        rows[int(number)][column] = value
    for split, file in FILES.items():
        write_table(root / file, [row for row in rows if row["part"] == split])
    return root


def test_each_table_is_a_split(tmp_path: Path) -> None:
    data = load(make_three(tmp_path / "set"), WITHOUT, FILES)
    whole = load(tmp_path / "set")
    for part in ("train", "val", "test"):
        own, expected = ({found.file_names[place] for place in vars(found)[part]} for found in (data, whole))
        assert own == expected
    assert data.class_names == whole.class_names
    kinds = {row["file"]: (row["kind"], row["ward"]) for row in rows_of()}
    for place, name in enumerate(data.file_names):
        assert (data.class_names[data.labels[place]], data.site_names[data.sites[place]]) == kinds[name]
        assert data.images[place, 0, 0, 0] == int(name[-6:-4])
    assert data.drawn == ()


def test_a_split_that_no_table_brings_is_drawn(tmp_path: Path) -> None:
    files = {name: file for name, file in FILES.items() if name != "val"}
    data = load(make_three(tmp_path / "set"), WITHOUT, files)
    assert data.drawn == ("val",)
    assert len(data.images) == 48


def test_what_is_wrong_is_told_by_table_and_row(tmp_path: Path) -> None:
    root = make_three(tmp_path / "set", kind_0="", kind_18="cyst", file_29="gone.png")
    with pytest.raises(UserError) as caught:
        load(root, WITHOUT, FILES)
    text = str(caught.value)
    assert f"{root}/train.csv, {root}/valid.csv, {root}/test.tsv, 3 of 60 rows: found {root}/train.csv row 1, " in text
    assert (
        f"{root}/valid.csv row 1, column kind: 'cyst'; {root}/test.tsv row 6, column file: no file 'gone.png'" in text
    )
    with pytest.raises(
        UserError, match=r"found .*valid.csv row 1, column kind: 'cyst'|^.*valid.csv row 1, column kind: fo"
    ):
        load(make_three(tmp_path / "other", kind_18="cyst"), WITHOUT, FILES)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "valid.csv").unlink(), "valid.csv: found no such file; expected a table"),
        (lambda root: (root / "valid.csv").write_text("file,kind,ward,person\n"), "valid.csv: found no row"),
        (lambda root: (root / "valid.csv").write_text("file,kind,ward\na,b,c\n"), "valid.csv: found no column person"),
    ],
)
def test_a_bad_table_among_them_is_one_line(tmp_path: Path, spoil: Any, message: str) -> None:
    root = make_three(tmp_path / "set")
    spoil(root)
    with pytest.raises(UserError, match=message):
        load(root, WITHOUT, FILES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"file": {"val": "a.csv"}}, "file: found .*; expected a table for train, and others for val and test"),
        ({"file": {"train": "a.csv", "test": "a.csv"}}, "file: found .*; expected a table for train"),
        ({"file": {"train": "a.csv", "held": "b.csv"}}, "file"),
        ({"file": FILES, "columns": COLUMNS}, "columns.split: found part with tables for the splits; expected one of"),
    ],
)
def test_words_that_do_not_fit_are_refused(words: dict[str, Any], message: str) -> None:
    good = {"name": "table", "root": ".", "columns": WITHOUT}
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate({**good, **words})


def test_one_table_under_two_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.file: found .*; expected each table once"):
        load(make_three(tmp_path / "set"), WITHOUT, {"train": "train.csv", "val": "./train.csv"})


def test_a_file_is_one_image_whatever_rows_call_it(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    rows = rows_of()
    (root / "linked.png").symlink_to(root / rows[0]["file"])
    (root / "hard.png").hardlink_to(root / rows[0]["file"])
    rows[3]["file"], rows[6]["file"] = "linked.png", "hard.png"
    rows[9]["file"] = f"scans/../{rows[0]['file']}"
    write_table(root / "labels.csv", rows)
    data = load(root, WITHOUT)
    assert len(data.images) == 57
    assert len(set(data.pictures[[0, 3, 6, 9]].tolist())) == 1
    assert len(set(data.groups[[0, 3, 6, 9]].tolist())) == 1
    assert "60 rows name 57 files; rows of one file stay together" in data.remarks


def test_a_name_alone_is_one_image_on_all_ways_to_it(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    (root / "latest").symlink_to(root / "scans")
    write_table(root / "labels.csv", [row | {"file": Path(row["file"]).name} for row in rows_of()])
    data = load(root)
    assert [data.images[place, 0, 0, 0] for place in range(60)] == list(range(60))
    (root / "copied").mkdir()
    (root / "copied" / "07.png").write_bytes((root / rows_of()[7]["file"]).read_bytes())
    with pytest.raises(UserError, match=r"row 8, column file: found 3 files of the name '07.png', such as "):
        load(root)


def test_classes_may_be_given_and_be_lacking(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    data = load(root, classes=["malignant", "unclear", "benign"])
    assert data.class_names == ("malignant", "unclear", "benign")
    assert [data.class_names[label] for label in data.labels] == [row["kind"] for row in rows_of()]
    with pytest.raises(UserError, match=r"column kind: 'malignant'.*; expected a class of data.classes: benign, other"):
        load(root, classes=["benign", "other"])
    listed = [row | {"kind": ("a|b", "No Finding")[n % 2]} for n, row in enumerate(rows_of())]
    write_table(root / "labels.csv", listed)
    columns = {"path": "file", "listed": "kind"}
    assert load(root, columns, classes=["b", "c", "a"]).targets[:2].tolist() == [[1, 0, 1], [0, 0, 0]]
    with pytest.raises(UserError, match=r"column kind: 'a|b'.*; expected findings of data.classes: a, c"):
        load(root, columns, classes=["a", "c"])


def test_labels_may_be_grades(tmp_path: Path) -> None:
    root = make(tmp_path / "set", [row | {"kind": number % 12} for number, row in enumerate(rows_of())])
    columns = {"path": "file", "label": "kind"}
    assert not load(root, columns).is_graded
    data = load(root, {**columns, "graded": True})
    assert data.is_graded
    assert data.class_names == tuple(map(str, range(12)))
    write_table(root / "labels.csv", [row | {"kind": ("mild", "none")[n % 2]} for n, row in enumerate(rows_of())])
    with pytest.raises(
        UserError, match=r"column kind: found the grade 'mild'; expected whole numbers, or data.classes"
    ):
        load(root, {**columns, "graded": True})
    named = load(root, {**columns, "graded": True}, classes=["none", "mild", "severe"])
    assert (named.is_graded, named.class_names) == (True, ("none", "mild", "severe"))
    with pytest.raises(ValueError, match=r"graded: found true with listed in place of label"):
        DataConfig.model_validate(
            {"name": "table", "root": ".", "file": "a.csv", "columns": {"listed": "kind", "graded": True}}
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"name": "digits"}, "classes: found .* with name: digits, which brings its classes"),
        ({"columns": {"findings": ["a", "b"]}}, "classes: found .* with columns.findings, which names them"),
        ({"classes": ["a", "a"]}, "classes: found .*; expected each once"),
    ],
)
def test_classes_without_effect_are_refused(words: dict[str, Any], message: str) -> None:
    good = {"name": "table", "root": ".", "file": "a.csv", "columns": {"label": "kind"}, "classes": ["a", "b"]}
    if words.get("name") == "digits":
        good = {"classes": ["a", "b"]}
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate({**good, **words})
