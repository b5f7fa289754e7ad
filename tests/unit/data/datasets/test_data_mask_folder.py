"""Own images with masks: layouts, JPEG masks, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsim.errors import UserError
from tests.helpers import load_set

pytestmark = pytest.mark.usefixtures("cache")


def make_pairs(
    folder: Path, count: int = 20, suffix: str = "png", names: tuple[str, str] = ("images", "masks")
) -> None:
    """Wide images, white where their masks are: a box in the middle of the left half."""
    for name in names:
        (folder / name).mkdir(parents=True)
    for number in range(count):
        box = np.zeros((32, 64), np.uint8)
        box[8:24, 8:24] = 255
        Image.fromarray(np.stack([box, box, np.full_like(box, number)], 2)).save(
            folder / names[0] / f"{number:02}.{suffix}"
        )
        Image.fromarray(box).save(folder / names[1] / f"{number:02}.{suffix}")


def load(root: Path, **words: Any) -> Any:
    return load_set("mask_folder", root=str(root), image_size=32, **words)


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_a_folder_without_sites(tmp_path: Path, suffix: str) -> None:
    """Kvasir-SEG has JPEG masks; their blur is no foreground."""
    make_pairs(tmp_path / "set", suffix=suffix)
    data = load(tmp_path / "set")
    assert (data.site_names, data.class_names, data.drawn) == ((), ("background", "foreground"), ("val", "test"))
    assert data.masks.sum((1, 2)).tolist() == [16 * 8] * 20
    assert (data.images[:, 0] > 127).logical_xor(data.masks == 1).sum((1, 2)).max() <= 16
    assert data.file_names[3] == f"images/03.{suffix}"


def test_sites_and_the_folders_of_cvc_clinicdb(tmp_path: Path) -> None:
    make_pairs(tmp_path / "set/Kvasir-SEG", suffix="jpg")
    make_pairs(tmp_path / "set/CVC-ClinicDB", suffix="tif", names=("Original", "Ground Truth"))
    data = load(tmp_path / "set", patient=r"/([0-9]+)\.")
    assert data.site_names == ("CVC-ClinicDB", "Kvasir-SEG")
    assert data.groups.tolist() == [*range(20), *range(20)]
    assert load(tmp_path / "set", external_sites=["Kvasir-SEG"]).test.tolist() == list(range(20, 40))


@pytest.mark.parametrize(("fit", "columns", "rows"), [("stretch", 8, 16), ("crop", 8, 16), ("pad", 8, 8)])
def test_a_mask_is_made_square_as_its_image_is(tmp_path: Path, fit: str, columns: int, rows: int) -> None:
    """Of a box of 16 x 16 in 64 x 32 pixels: half as wide; its right half alone; or half as wide and high."""
    make_pairs(tmp_path / "set")
    data = load(tmp_path / "set", fit=fit)
    inside = data.masks[0] == 1
    assert (int(inside.any(0).sum()), int(inside.any(1).sum())) == (columns, rows)
    assert (data.images[0, 0] > 127).logical_xor(inside).sum() <= rows


def spoil(folder: Path, name: str, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(folder / name, quality=100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "masks/03.png").unlink(),
            r"images/03.png: found no mask of that name; expected .*masks/03 with one",
        ),
        (
            lambda f: (f / "images/03.png").unlink(),
            r"masks/03.png: found no image of that name; expected .*images/03 with",
        ),
        (lambda f: spoil(f, "masks/03.png", np.zeros((9, 9), np.uint8)), r"03.png: found a mask of 9 x 9 pixels"),
        (lambda f: spoil(f, "masks/03.jpg", np.full((32, 64), 3, np.uint8)), r"the name of 03.jpg beside it"),
        (lambda f: (f / "masks").rename(f / "labels"), r"found no folders of images and masks; expected <root>/images"),
        (lambda f: (f / "images").rename(f / "pictures"), r"found no folders of images and masks"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, change: Any, message: str) -> None:
    make_pairs(tmp_path / "set")
    change(tmp_path / "set")
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_a_jpeg_of_numbered_classes_is_refused_and_an_empty_one_is_not(tmp_path: Path) -> None:
    make_pairs(tmp_path / "set", suffix="jpg")
    spoil(tmp_path / "set", "masks/03.jpg", np.zeros((32, 64), np.uint8))
    assert load(tmp_path / "set").masks[3].sum() == 0
    numbered = np.zeros((32, 64), np.uint8)
    numbered[8:24] = 60
    spoil(tmp_path / "set", "masks/03.jpg", numbered)
    with pytest.raises(UserError, match=r"03.jpg: found a JPEG mask of values up to 6.; expected black and white"):
        load(tmp_path / "set")


def test_a_palette_that_begins_with_another_colour_than_black_is_refused(tmp_path: Path) -> None:
    make_pairs(tmp_path / "set")
    expected = load(tmp_path / "set").masks[3]
    file = tmp_path / "set/masks/03.png"
    numbers = np.asarray(Image.open(file)) // 255
    mask = Image.fromarray(numbers, "P")
    mask.putpalette([0, 0, 0, 255, 255, 255])
    mask.save(file)
    assert load(tmp_path / "set").masks[3].tolist() == expected.tolist()
    mask = Image.fromarray(1 - numbers, "P")
    mask.putpalette([255, 255, 255, 0, 0, 0])
    mask.save(file)
    with pytest.raises(UserError, match=r"03.png: found a palette whose number 0 is the colour 255, 255, 255"):
        load(tmp_path / "set")


def test_a_folder_beside_the_sites_is_named(tmp_path: Path) -> None:
    make_pairs(tmp_path / "set/Ulm")
    (tmp_path / "set/notes").mkdir()
    with pytest.raises(UserError, match=r"set/notes: found no folders of images and masks"):
        load(tmp_path / "set")
