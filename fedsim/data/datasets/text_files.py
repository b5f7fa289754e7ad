"""Tables of texts on disk: your own, and GLUE (Wang et al., ICLR 2019) as the datasets library has it."""

import csv
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.config_data import ColumnsConfig
from fedsim.data.dataset import Source
from fedsim.data.splits import TEST, TRAIN, VAL
from fedsim.errors import UserError

Rows = list[dict[str, Any]]
Row = tuple[str, dict[str, Any]]  # where it stands, for messages, and its cells

SUFFIXES = (".tsv", ".jsonl", ".parquet", ".arrow")
SPLIT_WORDS = {"train": TRAIN, "validation": VAL, "val": VAL, "dev": VAL, "test": TEST}
LAYOUT = f"tables {{train,validation,test}}*{{{','.join(SUFFIXES)}}}"
GLUE_TEXTS = {
    "cola": ("sentence", None),
    "sst2": ("sentence", None),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}


def text_files(root: str, columns: ColumnsConfig) -> Source:
    """Read the tables directly in a folder: TSV with a header, JSON lines, parquet, or the datasets library's arrow.

    The split is that of ``columns.split``, else that of a word in the file's name (train, validation, val, dev, test),
    else train. UserError for a missing folder, table or column, an empty or strange cell, and a class that train lacks.
    """
    folder = Path(root).expanduser()
    files = _tables(folder)
    if not files:
        raise UserError(f"data.root {folder}", "no table", LAYOUT)
    rows, fixed = _read(files)
    if columns.split is not None:
        fixed = [_code(where, row, columns.split) for where, row in rows]
    return _source(rows, fixed, columns)


def glue(task: str, root: str | None) -> Source:
    """Read a task of GLUE with its published columns (sst2: sentence, label).

    Tables are looked for in ``root``, in its folder ``task``, and where the datasets library keeps them in its cache;
    ``root`` null means that cache. GLUE's test labels are secret: the published validation images
    become the test, mnli's matched ones, and the validation is drawn from train.
    """
    cache = os.environ.get("HF_DATASETS_CACHE") or "~/.cache/huggingface/datasets"
    base = Path(root or cache).expanduser()
    candidates = [base, base / task, *sorted(base.glob(f"*glue/{task}/*/*"))]
    files = next((tables for folder in candidates if (tables := _tables(folder))), [])
    files = [file for file in files if not {"test", "mismatched"} & _words(file)]
    if {_split_of_name(file) for file in files} != {TRAIN, VAL}:
        raise UserError(f"data.root {base}", f"no train and validation tables of glue:{task}", LAYOUT)
    rows, fixed = _read(files)
    fixed = [TEST if code == VAL else TRAIN for code in fixed]
    text, second = GLUE_TEXTS[task]
    kind = "score" if task == "stsb" else "label"
    return _source(rows, fixed, ColumnsConfig.model_validate({"text": text, "second": second, kind: "label"}))


def read_table(path: Path) -> Rows:
    """Return the rows of one file as mappings from column names; UserError where it cannot be read."""
    import pyarrow as pa  # late: few runs need it, and it takes 24 MiB
    import pyarrow.parquet

    try:
        if path.suffix == ".tsv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if path.suffix == ".parquet":
            rows: Rows = pyarrow.parquet.read_table(path).to_pylist()
            return rows
        with pa.memory_map(str(path)) as stream:
            streamed: Rows = pa.ipc.open_stream(stream).read_all().to_pylist()
        return streamed
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(str(path), str(error), f"a {path.suffix} table") from error


def _read(files: list[Path]) -> tuple[list[Row], list[int]]:
    """Return the rows of all tables and the split that each table's name puts its rows in."""
    rows: list[Row] = []
    fixed: list[int] = []
    for file in files:
        found = read_table(file)
        rows += [(f"{file} row {number}", row) for number, row in enumerate(found, start=1)]
        fixed += [_split_of_name(file)] * len(found)
    return rows, fixed


def _tables(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.name[0] != ".")


def _words(path: Path) -> set[str]:
    return set(re.split(r"[^a-z]+", path.stem.lower()))


def _split_of_name(path: Path) -> int:
    codes = {SPLIT_WORDS[word] for word in _words(path) & SPLIT_WORDS.keys()}
    if len(codes) > 1:
        raise UserError(str(path), "a name with several splits", LAYOUT)
    return next(iter(codes), TRAIN)


def _code(where: str, row: dict[str, Any], column: str) -> int:
    word = _cell(where, row, column)
    if word not in SPLIT_WORDS:
        raise UserError(f"{where}, column {column}", repr(word), ", ".join(SPLIT_WORDS))
    return SPLIT_WORDS[word]


def _cell(where: str, row: dict[str, Any], column: str) -> str:
    """Return a cell as text; it must be there and hold something."""
    if column not in row:
        raise UserError(where, f"no column {column}", f"one of {', '.join(str(name) for name in row)}")
    text = "" if row[column] is None else str(row[column]).strip()
    if not text:
        raise UserError(f"{where}, column {column}", "nothing", "a text, class or number")
    return text


def _number(where: str, row: dict[str, Any], column: str) -> float:
    text = _cell(where, row, column)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}, column {column}", repr(text), "a number")
    return number


def in_order(names: set[str]) -> tuple[str, ...]:
    """Sort names, whole numbers by their size."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _source(rows: list[Row], fixed: list[int], columns: ColumnsConfig) -> Source:
    wanted = [columns.text] if columns.second is None else [columns.text, columns.second]
    texts = tuple(tuple(_cell(where, row, column) for column in wanted) for where, row in rows)
    labels, targets = np.zeros(len(rows), np.int64), None
    class_names: tuple[str, ...] = (columns.score or "",)
    if columns.score is not None:
        targets = np.array([_number(where, row, columns.score) for where, row in rows], np.float32)
    if columns.label is not None:
        words = [_cell(where, row, columns.label) for where, row in rows]
        class_names = in_order({word for word, code in zip(words, fixed, strict=True) if code == TRAIN})
        for (where, _), word in zip(rows, words, strict=True):
            if word not in class_names:
                raise UserError(f"{where}, column {columns.label}", f"{word}", f"a class of train: {class_names}")
        labels = np.array([class_names.index(word) for word in words], np.int64)
    sites = None
    site_names: tuple[str, ...] = ()
    if columns.site is not None:
        places = [_cell(where, row, columns.site) for where, row in rows]
        site_names = in_order(set(places))
        sites = np.array([site_names.index(place) for place in places], np.int64)
    return Source(
        images=np.empty((len(rows), 0), np.uint8),
        labels=labels,
        class_names=class_names,
        sites=sites,
        site_names=site_names,
        fixed=np.array(fixed, np.int64),
        texts=texts,
        targets=targets,
    )
