"""A table of sixty images of three hospitals, for tests."""

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from tests.helpers import load_set

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


def load(root: Path, columns: dict[str, Any] | None = None, file: Any = "labels.csv", **words: Any) -> Any:
    columns = COLUMNS if columns is None else columns
    return load_set("table", root=str(root), file=file, columns=columns, image_size=8, **words)
