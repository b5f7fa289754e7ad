"""Sets of texts in tables, as the tests write them."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from fedsim.config.data import DataConfig
from fedsim.errors import UserError
from tests.helpers import load_set


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".tsv":
        lines = ["\t".join(map(str, line)) for line in (rows[0], *(row.values() for row in rows))]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)


def rows_of(number: int, start: int = 0) -> list[dict[str, Any]]:
    """Texts with a quotation mark, two classes, a score and a site."""
    return [
        {"sentence": f'say "{start + i}', "kind": "ab"[i % 2], "score": i / 2, "ward": f"ward {i % 3}"}
        for i in range(number)
    ]


def load(root: Path, **columns: str) -> Any:
    return load_set("text_files", root=str(root), columns={"text": "sentence", **columns})


# --- packaged sentences


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet", ".arrow"])
def test_every_kind_of_table(tmp_path: Path, suffix: str) -> None:
    for start, (name, number) in zip((0, 8, 12), {"train-0": 8, "x.validation": 4, "test": 2}.items(), strict=True):
        write(tmp_path / f"{name}{suffix}", rows_of(number, start))
    data = load(tmp_path, label="kind", site="ward")
    assert sorted(data.texts) == sorted((f'say "{i}',) for i in range(14))
    assert [len(part) for part in (data.train, data.val, data.test)] == [8, 4, 2]
    assert [data.texts[place][0] for place in data.val] == [f'say "{i}' for i in range(8, 12)]
    assert [data.texts[place][0] for place in data.test] == ['say "12', 'say "13']
    assert data.class_names == ("a", "b")
    assert data.labels[data.test].tolist() == [0, 1]
    assert data.site_names == ("ward 0", "ward 1", "ward 2")
    assert data.sites[data.train].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_pairs_scores_and_a_column_for_the_split(tmp_path: Path) -> None:
    rows = [row | {"part": part} for row, part in zip(rows_of(4), ["dev", "train", "test", "train"], strict=True)]
    write(tmp_path / "all.jsonl", rows)
    data = load(tmp_path, second="ward", score="score", split="part")
    assert data.texts[1] == ('say "1', "ward 1")
    assert data.targets.tolist() == [0, 0.5, 1, 1.5]
    assert (data.train.tolist(), data.val.tolist(), data.test.tolist()) == ([1, 3], [0], [2])
    assert data.class_names == ("score",)


def test_classes_that_are_numbers_stand_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"sentence": "x", "kind": i % 12} for i in range(120)])
    assert load(tmp_path, label="kind").class_names == tuple(str(i) for i in range(12))


MISTAKES = {
    "no table": ({}, {"label": "kind"}, r"data\.root .*: found no table"),
    "no column": ({}, {"label": "absent"}, r"train\.jsonl row 1: found no column absent; expected .*sentence, kind"),
    "nothing in a cell": ({"sentence": " "}, {"label": "kind"}, r"row 1, column sentence: found nothing"),
    "no number": ({"score": "high"}, {"score": "score"}, r"row 1, column score: found 'high'; expected a number"),
    "a number too large": (
        {"score": 1e300},
        {"score": "score"},
        r"column score: found 1e\+300; expected .* 3.403e\+38",
    ),
    "a number of 400 digits": (
        {"score": 10**400},
        {"score": "score"},
        r"column score: found 1000.*; expected a number",
    ),
    "no finite number": ({"score": float("inf")}, {"score": "score"}, r"column score: found inf; expected a number"),
    "true as a number": ({"score": True}, {"score": "score"}, r"column score: found true; expected a number"),
    "a number of Python": ({"score": "1_0"}, {"score": "score"}, r"column score: found '1_0'; expected a number"),
    "a mapping as a text": (
        {"sentence": {"a": 1}},
        {"label": "kind"},
        r"column sentence: found {'a': 1}; expected a text",
    ),
    "a number as a text": ({"sentence": 7}, {"label": "kind"}, r"column sentence: found 7; expected a text"),
    "half a character": ({"sentence": "\ud800"}, {"label": "kind"}, r"column sentence: found half a character in "),
    "a list as a class": (
        {"kind": [1]},
        {"label": "kind"},
        r"row 1, column kind: found \[1\]; expected a text or a whole",
    ),
    "no number as a class": (
        {"kind": float("nan")},
        {"label": "kind"},
        r"row 1, column kind: found nan; expected a text or",
    ),
    "a fraction as a class": (
        {"kind": 1.5},
        {"label": "kind"},
        r"row 1, column kind: found 1.5; expected a text or a whole",
    ),
    "no split": ({}, {"label": "kind", "split": "ward"}, r"row 1, column ward: found 'ward 0'; expected train"),
}


@pytest.mark.parametrize(("change", "columns", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_tables(tmp_path: Path, change: Any, columns: Any, message: str) -> None:
    if "no table" not in message:
        write(tmp_path / "train.jsonl", [row | change for row in rows_of(4)])
    with pytest.raises(UserError, match=message):
        load(tmp_path, **columns)


def lines(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("7", r"train.jsonl row 2: found 7; expected a JSON object"),
        ("null", r"train.jsonl row 2: found null; expected a JSON object"),
        ('"text"', r"train.jsonl row 2: found \"text\"; expected a JSON object"),
        (
            "[" * 5000 + "]" * 5000,
            r"train.jsonl row 2: found maximum recursion depth exceeded.*; expected a JSON object",
        ),
        ('{"sentence": "x", "kind": ' + "1" * 5000 + "}", r"row 2: found Exceeds the limit .*; expected a JSON object"),
        ('{"sentence": "x", "kind": "a", "kind": "b"}', r"train.jsonl row 2: found the key 'kind' twice"),
        ('{"sentence": "x"}', r"train.jsonl row 2: found no column kind; expected one of its columns, .*: sentence"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    lines(tmp_path / "train.jsonl", '{"sentence": "x", "kind": "a"}', row)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, label="kind")
    assert len(str(caught.value)) < 1000


def test_a_line_of_json_may_hold_what_ends_a_line_elsewhere(tmp_path: Path) -> None:
    rows = [{"sentence": f"one\u2028two\x85{i}", "kind": i % 2} for i in range(20)]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "train.jsonl").write_text(f"\ufeff{text}", encoding="utf-8")
    assert load(tmp_path, label="kind").texts[3] == ("one\u2028two\x853",)


def test_csv_is_quoted_as_rfc_4180_says(tmp_path: Path) -> None:
    rows = ['"a ""quoted"", text",1', '"two\nlines",2', "plain,2"] * 4
    lines(tmp_path / "train.csv", "sentence,kind", *rows)
    data = load(tmp_path, label="kind")
    assert [text for (text,) in data.texts[:3]] == ['a "quoted", text', "two\nlines", "plain"]
    assert data.class_names == ("1", "2")


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("train.csv", ["sentence,kind", "a,b,1"], r"train.csv row 1: found another number of cells; expected as many"),
        ("train.tsv", ["sentence\tkind", "x\ta", "x"], r"train.tsv row 2: found another number of cells"),
        ("train.csv", ["sentence,kind,kind", "a,b,1"], r"train.csv: found several columns kind; expected .* each once"),
        ("train.csv", ["sentence,kind", '"a"b,1'], r"train.csv: found .*expected after '\"'; expected a .csv table"),
        ("train.tsv", ["word " * 200 + "\t1"], r"train.tsv: found no column sentence; .*: (word ){8}\.\.\., 1$"),
        ("train.tsv", [], r"train.tsv: found no column sentence"),
        ("train.csv", ["sentence,kind", "a,1", "sentence,kind"], r"train.csv row 2: found the header once more"),
    ],
)
def test_mistakes_in_lines(tmp_path: Path, name: str, rows: list[str], message: str) -> None:
    lines(tmp_path / name, *rows)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, label="kind")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ([1, True], r"row 2, column kind: found 'True' beside '1'; expected classes or sites of one kind"),
        ([False, 0.0], r"row 2, column kind: found '0' beside 'False'"),
        (["1", "1.0"], r"row 2, column kind: found '1.0' beside '1'"),
        (["01", 1], r"row 2, column kind: found '1' beside '01'"),
        (["a", True], r"row 2, column kind: found 'True' beside 'a'"),
    ],
)
def test_one_class_is_not_written_in_two_ways(tmp_path: Path, kinds: list[Any], message: str) -> None:
    rows = [{"sentence": f"x {kind}", "kind": kind} for kind in [*kinds, "c"]]
    lines(tmp_path / "train.jsonl", *map(json.dumps, rows))
    with pytest.raises(UserError, match=message):
        load(tmp_path, label="kind")
    with pytest.raises(UserError, match=message):
        load(tmp_path, label="sentence", site="kind")


def test_whole_numbers_are_one_class_whatever_their_type(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"sentence": "x", "kind": [0, 1.0, 1, 0.0][i % 4]} for i in range(40)])
    data = load(tmp_path, label="kind")
    assert data.class_names == ("0", "1")
    assert data.labels[:4].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("columns", "remark"),
    [
        ({"label": "kind"}, "every row of train has 'a' in column kind"),
        ({"score": "score"}, "every row of train has 3.0 in column score"),
    ],
)
def test_a_single_class_or_number_is_remarked_upon(tmp_path: Path, columns: Any, remark: str) -> None:
    write(tmp_path / "train.jsonl", [row | {"kind": "a", "score": 3} for row in rows_of(40)])
    assert load(tmp_path, **columns).remarks == (remark,)


def test_texts_that_stand_in_train_and_in_a_held_out_split_are_remarked_upon(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", rows_of(8))
    write(tmp_path / "validation.jsonl", rows_of(4, start=100))
    write(tmp_path / "test.jsonl", [row | {"sentence": row["sentence"].upper()} for row in rows_of(5, start=6)])
    data = load(tmp_path, label="kind")
    assert data.remarks == ("2 of 5 texts of test stand in train as well",)
    assert load_set("rated_sentences").remarks == ()


def test_what_a_mac_leaves_beside_tables_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", rows_of(40))
    (tmp_path / "._train.tsv").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "__MACOSX").mkdir()
    data = load(tmp_path, label="kind")
    assert len(data.texts) == 40
    assert list(data.files["each"]) == ["train.tsv"]


@pytest.mark.parametrize("word", ["Dev", "valid", "VALIDATION"])
def test_a_split_in_a_cell_is_known_in_any_case(tmp_path: Path, word: str) -> None:
    rows = [row | {"part": part} for row, part in zip(rows_of(4), [word, "Training", "train", "TEST"], strict=True)]
    write(tmp_path / "all.csv", rows)
    data = load(tmp_path, label="kind", split="part")
    assert (data.train.tolist(), data.val.tolist(), data.test.tolist()) == ([1, 2], [0], [3])


def test_a_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", rows_of(4))
    write(tmp_path / "test.jsonl", [row | {"kind": "c"} for row in rows_of(2)])
    with pytest.raises(UserError, match=r"test\.jsonl row 1, column kind: found 'c'; expected .*'a', 'b'"):
        load(tmp_path, label="kind")


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for name in ("train.jsonl", "train.parquet", "train.arrow"):
        (tmp_path / name).write_bytes(b"{nothing")
        with pytest.raises(UserError, match=name):
            load(tmp_path, label="kind")
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"name": "text_files", "root": "."}, "no columns with name: text_files"),
        ({"name": "digits", "columns": {"label": "x"}}, "columns with name: digits"),
        ({"name": "text_files", "root": ".", "columns": {"text": "x"}}, "none of label, score"),
        ({"name": "text_files", "root": ".", "columns": {"label": "x", "score": "y"}}, "label and score; expected one"),
        ({"name": "digits", "max_tokens": 8}, "8 with name: digits"),
        ({"name": "rated_sentences", "augment": ["flip"]}, r"\['flip'\] with name: rated_sentences"),
    ],
)
def test_keys_that_do_not_fit_together(words: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate(words)
