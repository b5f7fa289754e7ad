"""Image folders with a split of their own: what its folders may be called, and what is no split."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsim.errors import UserError
from tests.helpers import load_set

pytestmark = pytest.mark.usefixtures("cache")


def make_classes(folder: Path, value: int, count: int = 10) -> None:
    for name in ("cecum", "polyp"):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (9, 9), (value, index, 0)).save(folder / name / f"{index:02}.png")


def load(root: Path) -> Any:
    return load_set("image_folder", root=str(root), image_size=8)


def reds(data: Any) -> list[set[int]]:
    """The red of the training, validation and test images, which tells the folder that they come from."""
    return [set(data.images[part, 0, 0, 0].tolist()) for part in (data.train, data.val, data.test)]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("train", "valid", "test"),
        ("Train", "Val", "Test"),
        ("training", "validation", "testing"),
        ("train", "dev", "testing"),
        ("TRAIN", "VALIDATION", "TEST"),
    ],
)
def test_splits_are_known_by_their_words(tmp_path: Path, train: str, val: str, test: str) -> None:
    for value, name in enumerate((train, val, test)):
        make_classes(tmp_path / "set" / name, value)
    assert reds(load(tmp_path / "set")) == [{0}, {1}, {2}]


@pytest.mark.parametrize(("name", "want"), [("valid", [{0}, {1}, {0}]), ("Test", [{0}, {0}, {1}])])
def test_the_split_that_is_missing_is_drawn_from_train(tmp_path: Path, name: str, want: list[set[int]]) -> None:
    make_classes(tmp_path / "set/train", 0)
    make_classes(tmp_path / "set" / name, 1)
    data = load(tmp_path / "set")
    assert reds(data) == want
    assert data.drawn == (("test",) if name == "valid" else ("val",))


def test_traces_of_a_mac_are_no_folder_beside_train(tmp_path: Path) -> None:
    make_classes(tmp_path / "set/train", 0)
    make_classes(tmp_path / "set/__MACOSX/train", 1)
    make_classes(tmp_path / "set/.ipynb_checkpoints", 1)
    (tmp_path / "set/train/__MACOSX").mkdir()
    (tmp_path / "set/train/cecum/._00.png").write_bytes(b"no")
    (tmp_path / "set/README").touch()
    data = load(tmp_path / "set")
    assert data.class_names == ("cecum", "polyp")
    assert reds(data) == [{0}, {0}, {0}]


def test_a_class_may_be_called_train_beside_others(tmp_path: Path) -> None:
    make_classes(tmp_path / "vehicles", 0)
    (tmp_path / "vehicles/polyp").rename(tmp_path / "vehicles/train")
    data = load(tmp_path / "vehicles")
    assert data.class_names == ("cecum", "train")
    assert data.drawn == ("val", "test")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ("train", "holdout"),
            r"set/holdout: found a folder beside train that is no split; expected train, training, val",
        ),
        (("Train", "tests"), r"set/tests: found a folder beside train that is no split; .*, test, testing"),
        (("train", "val", "valid"), r"set/valid: found a second folder of val; expected val alone"),
        (("Train", "train"), r"set/train: found a second folder of train; expected Train alone"),
        (("val", "test"), r"set: found no train beside test; expected <root>/<class>/<image> or"),
    ],
)
def test_folders_that_are_no_split_are_one_line(tmp_path: Path, folders: tuple[str, ...], message: str) -> None:
    for value, name in enumerate(folders):
        make_classes(tmp_path / "set" / name, value, 2)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "set")


def test_images_deeper_than_a_classes_own_are_not_passed_over(tmp_path: Path) -> None:
    make_classes(tmp_path / "set", 0)
    inner = tmp_path / "set/polyp/patient 7"
    inner.mkdir()
    (inner / "notes.txt").write_text("no image")
    assert len(load(tmp_path / "set").labels) == 20
    Image.new("RGB", (9, 9)).save(inner / "0.png")
    with pytest.raises(UserError, match=r"patient 7/0.png: found an image in a folder beside 00.png; expected all in"):
        load(tmp_path / "set")


def test_a_name_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    """Latin-1 names, as old archives have them; a record of the run could not hold the class."""
    make_classes(tmp_path / "set", 0)
    (tmp_path / "set/polyp").rename(tmp_path / "set/pol\udcffp")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "set")
    found = r"pol\udcffp: found a name that is no UTF-8 text; expected another name"
    assert str(caught.value) == f"{tmp_path}/set/{found}"


def test_splits_without_classes_are_not_taken_for_classes(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "set" / name / "0.png")
    with pytest.raises(UserError, match=r"set/train: found 0 class folders; expected at least two: <root>"):
        load(tmp_path / "set")
