"""Sets of texts: the packaged sentences as published, tables as the tests write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from fedsim.config import DataConfig
from fedsim.errors import UserError
from tests.helpers import class_counts, load_set


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".tsv":
        lines = ["\t".join(map(str, line)) for line in (rows[0], *(row.values() for row in rows))]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
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


def test_rated_sentences_have_their_sites_and_classes() -> None:
    data = load_set("rated_sentences")
    assert data.images.shape == (19459, 0)
    assert len(data.texts) == len(data.labels) == 19459
    assert data.site_names == ("tweets", "movie reviews", "editorials", "product reviews")
    # "Somehow I was blessed with some really amazing friends", rated 2.7, is the first.
    assert data.texts[0][0].startswith("Somehow I was blessed")
    assert data.labels[0] == 1
    for part, share in (("train", 0.65), ("val", 0.15), ("test", 0.2)):
        np.testing.assert_allclose(np.array(class_counts(data, part)) / np.bincount(data.labels), share, atol=0.01)


def test_neutral_sentences_are_no_part_of_the_rated_ones() -> None:
    public, rated = load_set("neutral_sentences"), load_set("rated_sentences")
    assert len(public.texts) == 1316
    assert np.bincount(public.sites).tolist() == [768, 533, 9, 6]
    assert public.targets.abs().max() < 0.5
    assert not {text.lower() for (text,) in public.texts} & {text.lower() for (text,) in rated.texts}
    assert not set(public.groups.tolist()) & set(rated.groups.tolist())
    everything = load_set("sentence_ratings")
    assert {text for (text,) in public.texts} <= {text for (text,) in everything.texts}


def test_no_document_and_no_sentence_is_in_two_splits() -> None:
    data = load_set("rated_sentences")
    for marks in (data.groups, np.array([text.lower() for (text,) in data.texts])):
        held = [set(marks[part].tolist()) for part in (data.train, data.val, data.test)]
        assert sum(map(len, held)) == len(held[0] | held[1] | held[2])


def test_ratings_are_all_sentences_with_a_number() -> None:
    data = load_set("sentence_ratings")
    assert data.targets.shape == (len(data.texts),) == (23703,)
    assert data.targets[0] == pytest.approx(2.726315789)
    assert -4 <= data.targets.min() < data.targets.max() <= 4
    assert data.class_names == ("rating",)


# --- tables


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".parquet", ".arrow"])
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
    "no split": ({}, {"label": "kind", "split": "ward"}, r"row 1, column ward: found 'ward 0'; expected train"),
}


@pytest.mark.parametrize(("change", "columns", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_tables(tmp_path: Path, change: Any, columns: Any, message: str) -> None:
    if "no table" not in message:
        write(tmp_path / "train.jsonl", [row | change for row in rows_of(4)])
    with pytest.raises(UserError, match=message):
        load(tmp_path, **columns)


def test_a_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", rows_of(4))
    write(tmp_path / "test.jsonl", [row | {"kind": "c"} for row in rows_of(2)])
    with pytest.raises(UserError, match=r"test\.jsonl row 1, column kind: found c; expected .*'a', 'b'"):
        load(tmp_path, label="kind")


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for name in ("train.jsonl", "train.parquet", "train.arrow"):
        (tmp_path / name).write_bytes(b"{nothing")
        with pytest.raises(UserError, match=name):
            load(tmp_path, label="kind")
        (tmp_path / name).unlink()


def test_glue_in_the_cache_of_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "nyu-mll___glue" / "mnli" / "0.0.0" / "abcdef"
    rows = [{"premise": f"p {i}", "hypothesis": f"h {i}", "label": i % 3, "idx": i} for i in range(30)]
    write(folder / "glue-train.arrow", rows)
    write(folder / "glue-validation_matched.arrow", rows[:6])
    write(folder / "glue-validation_mismatched.arrow", rows[:5])
    write(folder / "glue-test_matched.arrow", [row | {"label": -1} for row in rows[:4]])
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    for data in (load_set("glue:mnli"), load_set("glue:mnli", root=str(folder))):
        assert len(data.texts) == 36
        assert len(data.test) == 6
        assert len(data.train) + len(data.val) == 30
        assert data.texts[data.test[5]] == ("p 5", "h 5")
        assert data.class_names == ("0", "1", "2")


def test_glue_stsb_is_a_regression(tmp_path: Path) -> None:
    rows = [{"sentence1": "x", "sentence2": "y", "label": i / 4, "idx": i} for i in range(20)]
    for name in ("train", "validation"):
        write(tmp_path / "stsb" / f"{name}.parquet", rows)
    assert load_set("glue:stsb", root=str(tmp_path)).targets.max() == 4.75


def test_glue_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no train and validation tables of glue:rte"):
        load_set("glue:rte", root=str(tmp_path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"name": "text_files", "root": "."}, "no columns with name: text_files"),
        ({"name": "digits", "columns": {"label": "x"}}, "columns with name: digits"),
        ({"name": "text_files", "root": ".", "columns": {"text": "x"}}, "label: None and score: None"),
        ({"name": "text_files", "root": ".", "columns": {"label": "x", "score": "y"}}, "label: x and score: y"),
        ({"name": "digits", "max_tokens": 8}, "8 with name: digits"),
        ({"name": "rated_sentences", "augment": ["flip"]}, r"\['flip'\] with name: rated_sentences"),
    ],
)
def test_keys_that_do_not_fit_together(words: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate(words)
