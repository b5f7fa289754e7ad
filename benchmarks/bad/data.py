"""Bad data: folders of images and masks, tables of texts, MedMNIST files, NIfTI volumes; see ``files``."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.bad.damage import Damage, instead
from benchmarks.bad.files import Good, Words
from tests.helpers import LORA
from tests.unit.data.datasets.test_data_medmnist import write_medmnist
from tests.unit.data.datasets.test_data_texts import rows_of
from tests.unit.data.datasets.test_data_texts import write as write_table
from tests.unit.data.datasets.test_data_volumes import IMAGE, MASK, rewrite, with_bytes, write_site
from tests.unit.data.pictures import make_pictures
from tests.unit.models.models_hugging_folders import write_hugging

FORMATS = ("png", "jpg", "bmp", "tif", "webp")
SPLITS = ("train", "val", "test")
TABLES = ("tsv", "csv", "jsonl", "parquet", "arrow")
UNET = {"name": "monai:unet", "weights": "random", "options": {"channels": [4, 8], "strides": [2]}}
# Of a NIfTI file.
HEADER_BYTES, AFFINE_AT, IN_HEADER = 348, 280, 40
HALF = "\ud800"  # of a character, which JSON alone can name


def bad_data(stream: np.random.Generator) -> Iterator[Good]:
    """All of them."""
    yield from image_sets()
    yield from text_tables()
    yield from packed_sets(stream)


def data_words(name: str, **words: Any) -> Callable[[Path], Words]:
    """A set that lies in the folder itself."""
    return lambda folder: {"data": {"name": name, "root": str(folder), "image_size": 14, **words}}


# --- images, with and without masks


def image_sets() -> Iterator[Good]:
    """A folder of images in every format, and one of images and masks."""
    yield Good("images", "image_folder", _classes, data_words("image_folder"), _IMAGE_FILES, IMAGE_DAMAGES)
    words = data_words("nuclei", image_size=16)
    files = ("A/images/0.png", "A/masks/0.png", "A/masks/1.tif")
    yield Good("masks", "nuclei", _nuclei, lambda f: {"model": UNET, **words(f)}, files, MASK_DAMAGES)


_IMAGE_FILES = [f"a/{number}.{suffix}" for number, suffix in enumerate(FORMATS)]


def _classes(folder: Path) -> None:
    for name in "ab":
        (folder / name).mkdir()
        for number, picture in enumerate(make_pictures(10)):
            picture.resize((24, 24)).save(folder / name / f"{number}.{FORMATS[number % len(FORMATS)]}")


def _nuclei(folder: Path) -> None:
    for site in "ABCD":
        for part in ("images", "masks"):
            (folder / site / part).mkdir(parents=True)
        for number, picture in enumerate(make_pictures(8)):
            picture.resize((24, 24)).save(folder / site / "images" / f"{number}.png")
            _picture(f"{site}/masks/{number}.{'tif' if number % 2 else 'png'}", (24, 24), np.uint8)(folder)


def _picture(name: str, shape: tuple[int, ...], dtype: Any, form: str | None = None) -> Damage:
    pixels = np.zeros(shape, dtype)
    pixels[4:9, 4:12] = 1
    return lambda folder: Image.fromarray(pixels).save(folder / name, form)


def _pages(name: str, form: str) -> Damage:
    pages = [Image.new("L", (24, 24), 90 * number) for number in range(3)]
    return lambda folder: pages[0].save(folder / name, form, save_all=True, append_images=pages[1:])


def _emptied(name: str) -> Damage:
    return lambda folder: (shutil.rmtree(folder / name), (folder / name).mkdir())


def _renamed(old: str, new: str) -> Damage:
    return lambda folder: (folder / old).rename(folder / new)


def _linked(name: str, target: str) -> Damage:
    return lambda folder: ((folder / name).unlink(), (folder / name).symlink_to(target))


IMAGE_DAMAGES: dict[str, Damage] = {
    "a class without images": _emptied("b"),
    "one class": instead("b", None),
    "no class": lambda folder: (instead("a", None)(folder), instead("b", None)(folder)),
    "a link to nothing": _linked("a/0.png", "gone"),
    "a link to itself": _linked("a/0.png", "0.png"),
    "a file beside the classes": instead("notes.png", b"x"),
    "a class in a class": _renamed("b", "a/b"),
    "an empty split": lambda folder: [(folder / "set" / name).mkdir(parents=True) for name in ("train", "test")],
    "16 bits": _picture("a/0.png", (24, 24), np.uint16),
    "floats": _picture("a/3.tif", (24, 24), np.float32),
    "one pixel": _picture("a/0.png", (1, 1), np.uint8),
    "a GIF by another name": _picture("a/0.png", (24, 24), np.uint8, "GIF"),
    "an EPS by another name": _picture("a/0.png", (24, 24), np.uint8, "EPS"),
    "a PNG called JPEG": _picture("a/1.jpg", (24, 24), np.uint8, "PNG"),
    "three pages": _pages("a/3.tif", "TIFF"),
    "three frames": _pages("a/4.webp", "WEBP"),
    "a class of two lines": _renamed("b", "b\nc"),
    "a class that returns": _renamed("b", "b\rc"),
    "a class that rings": _renamed("b", "b\a\x1b[31m"),
    "a class of half a character": _renamed("b", "b\udcff"),
    "a bad file in a class of two lines": lambda folder: (
        instead("b/0.png", b"x")(folder),
        _renamed("b", "b\r\n\u2028c")(folder),
    ),
    "a bad file of half a character": instead("a/\udcff.png", b"x"),
}
MASK_DAMAGES: dict[str, Damage] = {
    "another size": _picture("A/masks/0.png", (25, 24), np.uint8),
    "colours": _picture("A/masks/0.png", (24, 24, 3), np.uint8),
    "probabilities": _picture("A/masks/1.tif", (24, 24), np.float32),
    "a JPEG by another name": _picture("A/masks/0.png", (24, 24), np.uint8, "JPEG"),
    "three pages": _pages("A/masks/1.tif", "TIFF"),
    "a mask too many": _picture("A/masks/9.png", (24, 24), np.uint8),
    "two masks of a name": _picture("A/masks/0.bmp", (24, 24), np.uint8),
    "no masks": _emptied("A/masks"),
    "no images": _emptied("A/images"),
    "masks elsewhere": _renamed("A/masks", "A/labels"),
    "an image with alpha": _picture("A/images/0.png", (24, 24, 4), np.uint8),
    "a site without anything": lambda folder: (folder / "E").mkdir(),
}

# --- tables of texts


def text_tables() -> Iterator[Good]:
    """A table in each form."""
    for suffix in TABLES:
        more: dict[str, Damage] = {
            f"{column} {how}": partial(_with_cell, suffix, column, value)
            for column, values in CELLS.items()
            for how, value in values.items()
            if suffix == "jsonl" or (isinstance(value, str) and value != HALF)
        }
        if suffix in ("tsv", "csv"):
            more |= {how: partial(_with_lines, suffix, change) for how, change in LINES.items()}
        yield Good(
            "tables",
            suffix,
            partial(write_texts, suffix=suffix),
            text_words,
            [f"train.{suffix}"],
            more,
            overwritten=suffix != "arrow",  # another program may crash over such a file, and none is to be made here
        )


def write_texts(folder: Path, suffix: str) -> None:
    """Leave a table of texts, and in ``folder/bert`` a model that reads them."""
    write_table(folder / f"train.{suffix}", _rows())
    write_hugging(folder / "bert")


def text_words(folder: Path) -> Words:
    """What names them."""
    columns = {"text": "sentence", "label": "kind", "site": "ward"}
    return {
        "model": {"name": f"hf:{folder / 'bert'}", "lora": LORA},
        "data": {"name": "text_files", "root": str(folder), "columns": columns},
    }


CELLS: dict[str, dict[str, Any]] = {
    "sentence": {"empty": "", "blank": " \u00a0", "null": None, "number": 3, "list": ["a"], "half": HALF},
    "kind": {"empty": "", "null": None, "list": [], "fraction": 0.5, "NaN": float("nan"), "true": True, "rings": "\a"},
    "ward": {"empty": "", "null": None, "mapping": {"a": 1}, "1.0 beside 1": 1.0},
}
LINES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "no header": lambda lines: lines[1:],
    "only a header": lambda lines: lines[:1],
    "two headers": lambda lines: [lines[0], *lines],
    "a column twice": lambda lines: [lines[0].replace(b"score", b"kind"), *lines[1:]],
    "a cell too few": lambda lines: [*lines[:5], lines[5][:4] + b"\n", *lines[6:]],
    "a cell too many": lambda lines: [*lines[:5], lines[5].rstrip() + lines[0][8:9] + b"more\n", *lines[6:]],
    "a null byte": lambda lines: [*lines[:5], lines[5].replace(b"scan", b"sc\0n"), *lines[6:]],
    "Latin-1": lambda lines: [*lines[:5], lines[5].replace(b"scan", b"sc\xe4n"), *lines[6:]],
    "an open quote": lambda lines: [*lines[:5], b'"' + lines[5], *lines[6:]],
    "another delimiter": lambda lines: [line.replace(lines[0][8:9], b";") for line in lines],
}


def _rows() -> list[dict[str, Any]]:
    """Rows whose texts are of words that the model knows."""
    return [row | {"sentence": f"good scan {'abcd'[number % 4]}"} for number, row in enumerate(rows_of(40))]


def _with_cell(suffix: str, column: str, value: Any, folder: Path) -> None:
    rows = _rows()
    rows[7][column] = value
    write_table(folder / f"train.{suffix}", rows)


def _with_lines(suffix: str, change: Callable[[list[bytes]], list[bytes]], folder: Path) -> None:
    path = folder / f"train.{suffix}"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


# --- sets in files of their own form


def packed_sets(stream: np.random.Generator) -> Iterator[Good]:
    """A MedMNIST file, and prostate volumes; ``stream`` draws what is overwritten in the volumes' headers."""
    words = data_words("medmnist:breastmnist", image_size=28)
    file = "breastmnist.npz"
    more: dict[str, Damage] = {
        how: partial(lambda change, folder: write_medmnist(folder / file, 28, **change), change)
        for how, change in ARRAYS.items()
    }
    yield Good("MedMNIST", "medmnist", lambda f: write_medmnist(f / file, 28), words, [file], more)
    words = data_words("prostate", image_size=16)
    more = dict(VOLUMES)
    for path in (IMAGE, MASK):
        for place in stream.integers(HEADER_BYTES, size=IN_HEADER):
            more[f"{path}: header overwritten at {place}"] = with_bytes(path, int(place), stream.bytes(2))
    yield Good(
        "volumes",
        "prostate",
        lambda folder: write_site(folder / "A"),
        lambda folder: {"model": UNET, **words(folder)},
        [IMAGE, MASK],
        more,
    )


ARRAYS: dict[str, dict[str, Any]] = {
    **{f"no {split}_{kind}": {f"{split}_{kind}": None} for split in SPLITS for kind in ("images", "labels")},
    "labels of a text": {"train_labels": np.full((600, 1), "0")},
    "labels of several columns": {"train_labels": np.zeros((600, 14), np.uint8)},
    "labels as floats": {"train_labels": np.zeros((600, 1))},
    "labels out of range": {"val_labels": np.full((10, 1), 2, np.uint8)},
    "labels below zero": {"val_labels": np.full((10, 1), -1, np.int8)},
    "labels of one class": {"train_labels": np.zeros((600, 1), np.uint8)},
    "no label": {"test_labels": np.zeros((0, 1), np.uint8)},
    "labels too few": {"test_labels": np.zeros((11, 1), np.uint8)},
    "labels as objects": {"train_labels": np.array([[None]] * 600)},
    "images as floats": {"train_images": np.zeros((600, 28, 28))},
    "images of another size": {"val_images": np.zeros((10, 30, 30), np.uint8)},
    "images of four channels": {"val_images": np.zeros((10, 28, 28, 4), np.uint8)},
    "images of colours beside grey ones": {"val_images": np.zeros((10, 28, 28, 3), np.uint8)},
    "images by column": {"train_images": np.asfortranarray(np.zeros((600, 28, 28), np.uint8))},
    "images too few": {"train_images": np.zeros((599, 28, 28), np.uint8)},
    "images in one row": {"train_images": np.zeros((600, 784), np.uint8)},
}
VOLUMES: dict[str, Damage] = {
    "a mask of another size": rewrite(MASK, lambda v, a: (v[1:], a)),
    "a mask of probabilities": rewrite(MASK, lambda v, a: (v.astype(np.float32) * 0.5, a)),
    "a mask below zero": rewrite(MASK, lambda v, a: (-v.astype(np.int16), a)),
    "a mask of NaN": rewrite(MASK, lambda v, a: (np.full(v.shape, np.nan, np.float32), a)),
    "a mask with other axes": rewrite(MASK, lambda v, a: (v, a[[1, 0, 2, 3]])),
    "an empty mask": rewrite(MASK, lambda v, a: (v * 0, a)),
    "an infinite voxel": rewrite(IMAGE, lambda v, a: (np.where(v == v.max(), np.inf, v).astype(np.float32), a)),
    "an image of one value": rewrite(IMAGE, lambda v, a: (v * 0, a)),
    "complex voxels": rewrite(IMAGE, lambda v, a: (v.astype(np.complex64), a)),
    "a fourth axis": rewrite(IMAGE, lambda v, a: (np.stack([v, v], 3), a)),
    "two axes": rewrite(IMAGE, lambda v, a: (v[:, :, 0], a)),
    "an affine of zeros": with_bytes(IMAGE, AFFINE_AT, np.zeros(12, "<f4").tobytes()),
    "an affine of NaN": with_bytes(IMAGE, AFFINE_AT, np.full(12, np.nan, "<f4").tobytes()),
    "a mask without its image": instead(IMAGE, None),
    "a site without anything": lambda folder: (folder / "B").mkdir(),
    "split files of one site alone": instead("A-dir.npy", b"x"),
}
