"""What ``check`` says of pictures in two splits, where it is known which ones are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsim.data import overlap
from fedsim.data.overlap import overlaps, same_pictures
from tests.helpers import load_set, make_dataset, make_masked_dataset
from tests.unit.data.pictures import make_pictures

TURNED, MIRRORED = Image.Transpose.ROTATE_90, Image.Transpose.FLIP_LEFT_RIGHT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty training pictures of two classes, five for validation, five for the test, and copies between them."""
    pictures = iter(make_pictures(40))
    for split, counts in {"train": (10, 10), "val": (3, 2), "test": (3, 2)}.items():
        for name, count in zip("ab", counts, strict=True):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number in range(count):
                next(pictures).save(tmp_path / "set" / split / name / f"{number}.png")
    return tmp_path / "set"


def copy(folder: Path, source: str, target: str, turn: Image.Transpose | None = None, **options: int) -> None:
    image = Image.open(folder / source)
    (image if turn is None else image.transpose(turn)).save(folder / target, **options)


def rows_of(folder: Path) -> dict[str, list[str]]:
    data = load_set("image_folder", image_size=128, root=str(folder))
    return {name: text.split("; ") for name, text, _ in overlaps(data)}


@pytest.mark.usefixtures("cache")
def test_clean_splits_have_nothing_in_common(folder: Path) -> None:
    nothing = [f"0 of 5 {first} images have one in {second}" for first, second in (("val", "train"), ("test", "train"))]
    nothing.append("0 of 5 test images have one in val")
    assert rows_of(folder) == {"near-duplicates": nothing, "same pixels": [*nothing, "0 pictures in two classes"]}


@pytest.mark.usefixtures("cache")
def test_copies_are_counted_where_they_stand(folder: Path) -> None:
    copy(folder, "train/a/0.png", "test/a/same.png")
    copy(folder, "train/a/1.png", "test/a/turned.png", TURNED)
    copy(folder, "train/a/2.png", "test/b/of another class.png", MIRRORED)
    copy(folder, "train/b/0.png", "test/b/compressed.jpg", MIRRORED, quality=60)
    copy(folder, "train/b/1.png", "val/b/same.png")
    copy(folder, "val/a/0.png", "test/a/of val.png")
    copy(folder, "train/b/2.png", "train/a/of another class.png")
    assert rows_of(folder) == {
        "near-duplicates": [
            "1 of 6 val images have one in train",
            "4 of 10 test images have one in train",
            "1 of 10 test images have one in val",
        ],
        "same pixels": [
            "1 of 6 val images have one in train",
            "3 of 10 test images have one in train",
            "1 of 10 test images have one in val",
            "2 pictures in two classes",
        ],
    }


@pytest.mark.usefixtures("cache")
def test_a_large_set_is_looked_at_in_a_sample(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        copy(folder, f"train/a/{number}.png", f"test/a/{number}.png")
    monkeypatch.setattr(overlap, "MOST_PAIRS", 60)
    near = rows_of(folder)["near-duplicates"]
    assert near[0] == "0 of a sample of 3 val images have one in train"
    # The first, the third and the fifth of the test images, of which the first three are copies.
    assert near[1] == "2 of a sample of 3 test images have one in train"


def test_pictures_of_equal_sums_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 8, 8), np.uint8)
    shuffled = rng.permutation(image.reshape(3, -1), axis=1).reshape(3, 8, 8)
    other = rng.integers(0, 256, (3, 8, 8), np.uint8)
    turned = [np.rot90(image, turns, (1, 2)) for turns in range(4)] + [image[:, ::-1], image.transpose(0, 2, 1)]
    numbers = same_pictures(np.stack([image, shuffled, other, *turned]))
    assert len(set(numbers[[0, *range(3, 9)]].tolist())) == 1
    assert len(set(numbers.tolist())) == 3


def test_a_mask_is_no_class_of_a_picture() -> None:
    data, _ = make_masked_dataset([4], side=16)
    images = data.images.clone()
    images[1] = images[0]
    rows = {one.name: one.text for one in overlaps(replace(data, images=images))}
    assert "two classes" not in rows["same pixels"]


def test_groups_in_two_splits_are_counted_in_all_and_by_site() -> None:
    data, _ = make_dataset([6])
    groups, sites = np.arange(30), np.repeat([0, 1, 0, 1], [3, 3, 12, 12])
    groups[6:9] = [0, 1, 3]  # validation images of site 0; group 3 is trained on at site 1
    groups[18:20] = 4  # test images of site 1
    data = replace(data, groups=groups, sites=sites, site_names=("A", "B"))
    rows = {one.name: one.text for one in overlaps(data)}
    assert rows["same groups"].split("; ") == [
        "3 of 12 val images have one in train",
        "2 of 12 test images have one in train",
        "0 of 12 test images have one in val",
    ]
    assert rows["same groups, own site"] == "A 2 of 12 val, 0 of 0 test; B 0 of 0 val, 2 of 12 test"


def test_texts_have_no_pixels_to_compare() -> None:
    assert [one.name for one in overlaps(load_set("rated_sentences"))] == ["same groups", "same groups, own site"]
