"""Bad tables of images and bad folders of hospitals; see ``files``, and ``inputs --only 'own images'``."""

import csv
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from benchmarks.bad.damage import Damage, instead
from benchmarks.bad.files import Good, Words
from tests.unit.data.pictures import make_pictures

FAMILY = "own images"
TABLES = ("csv", "tsv", "parquet")
HOSPITALS = ("east", "north", "west")
COLUMNS = {"path": "file", "label": "kind", "site": "ward", "patient": "person", "client": "scanner", "split": "part"}
Rows = list[dict[str, Any]]


def bad_tables() -> Iterator[Good]:
    """A table in each form, and folders of hospitals with and without splits."""
    for suffix in TABLES:
        more: dict[str, Damage] = {
            f"{column} {how}": partial(_with_rows, suffix, _with_cell(column, value))
            for column, values in CELLS.items()
            for how, value in values.items()
        }
        more |= {how: partial(_with_rows, suffix, change) for how, change in ROWS.items()}
        if suffix != "parquet":
            more |= {how: partial(_with_text, suffix, change) for how, change in TEXT.items()}
        more |= {how: partial(_with_names, suffix, renamed) for how, renamed in NAMES.items()}
        yield Good(
            FAMILY,
            f"own {suffix}",
            partial(write_set, suffix=suffix),
            partial(table_words, suffix),
            [f"labels.{suffix}"],
            more,
        )
    for splits in ((), ("train", "val", "test")):
        name = "hospitals with splits" if splits else "hospitals"
        yield Good(FAMILY, name, partial(write_hospitals, splits=splits), hospital_words, [], _folders(splits))


def table_words(suffix: str, folder: Path) -> Words:
    """What names the table."""
    data = {"name": "table", "root": str(folder), "file": f"labels.{suffix}", "columns": COLUMNS, "image_size": 14}
    return {"data": data, "clients": {"count": 2, "partition": {"name": "column"}}}


def hospital_words(folder: Path) -> Words:
    """What names the folders."""
    return {"data": {"name": "image_folder", "root": str(folder), "image_size": 14, "patient": "p[0-9]+"}}


def good_rows() -> Rows:
    """Sixty images of three wards, of two kinds, in three splits."""
    return [
        {
            "file": f"scans/{number:02}.png",
            "kind": ("benign", "malignant")[number // 3 % 2],
            "ward": HOSPITALS[number % 3],
            "person": f"p{number // 6}",
            "scanner": number % 2,
            "part": ("train", "train", "train", "val", "test")[number // 6 % 5],
        }
        for number in range(60)
    ]


def write_set(folder: Path, suffix: str) -> None:
    """Leave images and their table."""
    (folder / "scans").mkdir()
    for number, picture in enumerate(make_pictures(60)):
        picture.resize((24, 24)).save(folder / f"scans/{number:02}.png")
    _write(folder / f"labels.{suffix}", good_rows())


def _write(path: Path, rows: Rows) -> None:
    if path.suffix == ".parquet":
        names = list(rows[0]) if rows else list(good_rows()[0])
        pa.parquet.write_table(pa.table({name: [row[name] for row in rows] for name in names}), path)
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(good_rows()[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def write_hospitals(folder: Path, splits: tuple[str, ...]) -> None:
    """Leave a folder per hospital, each with two classes of ten images."""
    pictures = iter(make_pictures(len(HOSPITALS) * max(1, len(splits)) * 20))
    for hospital in HOSPITALS:
        for split in splits or (".",):
            for name in "ab":
                (folder / hospital / split / name).mkdir(parents=True)
                for number in range(10):
                    picture = next(pictures).resize((24, 24))
                    picture.save(folder / hospital / split / name / f"p{number}.png")


# --- what is done to a table


def _with_rows(suffix: str, change: Callable[[Rows], Rows], folder: Path) -> None:
    _write(folder / f"labels.{suffix}", change(good_rows()))


def _with_cell(column: str, value: Any) -> Callable[[Rows], Rows]:
    """Replace a column's cell in three rows."""
    return lambda rows: [row | {column: value} if number in (3, 7, 30) else row for number, row in enumerate(rows)]


def _with_text(suffix: str, change: Callable[[list[bytes]], list[bytes]], folder: Path) -> None:
    path = folder / f"labels.{suffix}"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def _with_names(suffix: str, renamed: dict[str, str], folder: Path) -> None:
    rows = [{renamed.get(name, name): cell for name, cell in row.items()} for row in good_rows()]
    path = folder / f"labels.{suffix}"
    if suffix == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
        return
    separator = "\t" if suffix == "tsv" else ","
    path.write_text("\n".join(separator.join(map(str, line)) for line in (rows[0], *(row.values() for row in rows))))


CELLS: dict[str, dict[str, Any]] = {
    "file": {
        "empty": "",
        "blank": " ",
        "gone": "gone.png",
        "a folder": "scans",
        "above": "../../../x.png",
        "a null byte": "a\0",
    },
    "kind": {"empty": "", "another in all splits": "cyst", "of half a line": "be\rnign"},
    "ward": {"empty": "", "blank": "\u00a0"},
    "scanner": {},
    "person": {},
    "part": {"empty": "", "unknown": "holdout", "a number": "1"},
}
ROWS: dict[str, Callable[[Rows], Rows]] = {
    "no row": lambda _: [],
    "one row": lambda rows: rows[:1],
    "one class": lambda rows: [row | {"kind": "benign"} for row in rows],
    "a class that only the test has": lambda rows: [
        row | {"kind": "cyst"} if row["part"] == "test" else row for row in rows
    ],
    "no training row": lambda rows: [row | {"part": "test"} for row in rows],
    "no file there": lambda rows: [row | {"file": f"other/{row['file']}"} for row in rows],
    "no path": lambda rows: [row | {"file": ""} for row in rows],
    "all empty": lambda rows: [dict.fromkeys(row, "") for row in rows],
    "1.0 beside 1": lambda rows: [row | {"kind": "1.0" if number % 2 else "1"} for number, row in enumerate(rows)],
}
TEXT: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "no header": lambda lines: lines[1:],
    "only a header": lambda lines: lines[:1],
    "two headers": lambda lines: [lines[0], *lines],
    "a cell too few": lambda lines: [*lines[:5], b"x\n", *lines[6:]],
    "a cell too many": lambda lines: [*lines[:5], lines[5].rstrip() + lines[0][4:5] + b"more\n", *lines[6:]],
    "Latin-1": lambda lines: [*lines[:5], lines[5].replace(b"benign", b"b\xe4nign"), *lines[6:]],
    "an open quote": lambda lines: [*lines[:5], b'"' + lines[5], *lines[6:]],
    "another delimiter": lambda lines: [line.replace(lines[0][4:5], b";") for line in lines],
    "UTF-16": lambda lines: [b"".join(lines).decode().encode("utf-16")],
    "zeros": lambda lines: [b"\0" * len(b"".join(lines))],
}
NAMES: dict[str, dict[str, str]] = {
    **{f"no column {name}": {name: "other"} for name in COLUMNS.values()},
    "other capitals": {"file": "File"},
}


# --- what is done to folders


def _folders(splits: tuple[str, ...]) -> dict[str, Damage]:
    split = splits[0] if splits else "."
    first = Path("east") / split

    def rename(old: str | Path, new: str | Path) -> Damage:
        return lambda folder: (folder / old).rename(folder / new)

    def empty(name: str | Path) -> Damage:
        return lambda folder: (shutil.rmtree(folder / name), (folder / name).mkdir())

    damages: dict[str, Damage] = {
        "an empty hospital": empty("east"),
        "a class without images": empty(first / "a"),
        "a hospital of images": lambda folder: [
            path.rename(folder / "east" / f"{path.parent.name}{path.name}") for path in folder.glob("east/**/*.png")
        ],
        "an image beside the classes": lambda folder: shutil.copy(next(folder.glob("**/*.png")), folder / "east/x.png"),
        "a broken image": instead(str(first / "a/p0.png"), b"x"),
        "names without a patient": rename(first / "a/p0.png", first / "a/x.png"),
        "a class of half a character": rename(first / "a", first / "a\udcff"),
        "a link to nothing": lambda folder: (folder / first / "a/p99.png").symlink_to("gone"),
        "a hospital of one class in all": lambda folder: [shutil.rmtree(path) for path in folder.glob("*/**/b")],
    }
    if splits:
        damages |= {
            "other splits": lambda folder: shutil.rmtree(folder / "east/val"),
            "no train": lambda folder: shutil.rmtree(folder / "east/train"),
            "a split of another word": rename("east/val", "east/holdout"),
            "two of one split": lambda folder: shutil.copytree(folder / "east/val", folder / "east/valid"),
            "a class that train lacks": rename("east/test/a", "east/test/c"),
            "classes in the split's place": rename("east/train/a", "east/a"),
        }
    return damages
