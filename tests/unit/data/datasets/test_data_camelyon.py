"""Camelyon17 in HarmoFL's pickle and in the table of WILDS, as the tests write them."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsim.data import partition_clients
from fedsim.errors import UserError
from tests.helpers import load_set, make_config

pytestmark = pytest.mark.usefixtures("cache")
NUM_TRAIN, NUM_TEST = 10, 4


def patch(path: Path, colour: tuple[int, int, int]) -> str:
    """Write a patch as OpenSlide cuts it, with an opaque alpha channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (96, 96), (*colour, 255)).save(path)
    return path.name


def table_of(root: Path, paths_as: Any = list, labels_as: Any = list) -> dict[str, Any]:
    """Five hospitals, whose red tells the hospital and green the patch; every third patch shows a tumour."""
    table: dict[str, Any] = {}
    for hospital in range(1, 6):
        names = [f"patches/h{hospital}/{number}.png" for number in range(NUM_TRAIN + NUM_TEST)]
        for number, name in enumerate(names):
            patch(root / name, (hospital * 10, number, 0))
        labels = [int(number % 3 == 0) for number in range(len(names))]
        halves = slice(NUM_TRAIN), slice(NUM_TRAIN, None)
        parts = [(paths_as(names[half]), labels_as(labels[half])) for half in halves]
        table[f"hospital{hospital}"] = dict(zip(("train", "test"), parts, strict=True))
    return table


def dump(root: Path, content: Any, protocol: int = 4) -> None:
    (root / "data.pkl").write_bytes(pickle.dumps(content, protocol))


def load(root: Path, name: str = "camelyon17") -> Any:
    return load_set(name, root=str(root), image_size=16)


@pytest.mark.parametrize("protocol", [3, 5])
@pytest.mark.parametrize(
    ("paths_as", "labels_as"),
    [(list, list), (np.array, np.array), (tuple, lambda y: np.array(y, np.float32)[:, None])],
)
def test_hospitals_are_sites_and_the_last_fifth_is_for_validation(
    tmp_path: Path, paths_as: Any, labels_as: Any, protocol: int
) -> None:
    dump(tmp_path, table_of(tmp_path, paths_as, labels_as), protocol)
    data = load(tmp_path)
    assert data.site_names == tuple(f"hospital{number}" for number in range(1, 6))
    assert data.class_names == ("no tumour", "tumour")
    assert data.masks is None
    for site in range(5):
        own = [part[data.sites[part] == site] for part in (data.train, data.val, data.test)]
        green = [data.images[part, 1, 0, 0].tolist() for part in own]
        assert green == [list(range(8)), [8, 9], [10, 11, 12, 13]]
        assert set(data.images[np.concatenate(own), 0].flatten().tolist()) == {10 * (site + 1)}
        assert data.labels[own[2]].tolist() == [0, 0, 1, 0]
    config = make_config(clients={"count": 5, "partition": {"name": "sites"}}).clients
    assert [len(part) for part in partition_clients(data, config, 0)] == [8] * 5


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_a_pickle_that_would_run_code_is_refused_before_it_does(tmp_path: Path) -> None:
    dump(tmp_path, {"hospital1": Evil(f"touch {tmp_path / 'ran'}")})
    with pytest.raises(UserError, match=r"data.pkl: found (posix|nt).system in it; expected a pickle of containers"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["hospital1"], r"data.pkl: found another content; expected \{.hospital1"),
        ({"hospital1": {"train": ([], [])}}, r"data.pkl hospital1 train: found no image; expected one or more"),
        ({"hospital1": {"test": ([], [])}}, r"data.pkl hospital1 train: found another content"),
        (
            {"hospital1": {"train": (["a.png"], [0, 1])}},
            r"hospital1 train: found 1 paths with 2 labels; expected a label",
        ),
        ({"hospital1": {"train": (["a.png"], [2])}}, r"hospital1 train: found 1 paths with 1 labels; expected a label"),
        (
            {"hospital1": {"train": (["a.png"], [[1]])}},
            r"hospital1 train: found 1 paths with 1 labels; expected a label",
        ),
        ({"hospital1": {"train": ("a", [1])}}, r"hospital1 train: found another content"),
        ({"hospital1": {"train": ([1], [1])}}, r"hospital1 train: found the path 1; expected paths inside"),
        ({"hospital1": {"train": (["a\0"], [1])}}, r"hospital1 train: found the path 'a\\x00'; expected paths"),
        ({"hospital1": {"train": (["\ud800"], [1])}}, r"hospital1 train: found the path '\\ud800'; expected paths"),
        (
            {"hospital1": dict.fromkeys(("train", "test"), (["a" * 5000], [1]))},
            r"aaa: found no such file; expected a patch",
        ),
        (
            {"hospital1": {"train": (np.array(["a.png"], object), [1])}},
            r"data.pkl: found an array of type 'O8' in it; expected a pickle of containers, strings, numbers, arrays",
        ),
        (
            {"hospital1": {"train": (["../a.png"], [1])}},
            r"hospital1 train: found the path '../a.png'; expected paths inside",
        ),
        (
            {"hospital1": dict.fromkeys(("train", "test"), (["a.png"], [1]))},
            r"a.png: found no such file; expected a patch",
        ),
    ],
)
def test_another_pickle_is_one_line(tmp_path: Path, content: Any, message: str) -> None:
    dump(tmp_path, content)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_half_a_pickle_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.pkl: found no such file; expected HarmoFL"):
        load(tmp_path)
    (tmp_path / "data.pkl").write_bytes(pickle.dumps(table_of(tmp_path))[:-9])
    with pytest.raises(UserError, match=r"data.pkl: found .*; expected a pickle of containers"):
        load(tmp_path)


@pytest.fixture
def wilds(tmp_path: Path) -> Path:
    """Five centers of ten patients with two patches each; red tells the center, green the patient."""
    lines = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    for center in range(5):
        for patient in range(10 * center, 10 * center + 10):
            for x in range(2):
                slide = f"patient_{patient:03}_node_4"
                patch(tmp_path / "patches" / slide / f"patch_{slide}_x_{x}_y_7.png", (center, patient, 0))
                lines.append(f"{len(lines) - 1},{patient:03},4,{x},7,{x},{patient},{center},{x}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_wilds_sets_whole_patients_of_every_hospital_aside(wilds: Path) -> None:
    data = load(wilds, "wilds_camelyon17")
    assert data.site_names == tuple(f"hospital {center}" for center in range(5))
    assert data.labels.tolist() == [0, 1] * 50
    for center in range(5):
        own = [part[data.sites[part] == center] for part in (data.train, data.val, data.test)]
        patients = [(data.images[part, 1, 0, 0] - 10 * center).tolist() for part in own]
        assert patients == [[p for p in range(6) for _ in range(2)], [6, 6, 7, 7], [8, 8, 9, 9]]
        assert set(data.images[np.concatenate(own), 0].flatten().tolist()) == {center}


def test_the_table_is_a_data_file(wilds: Path) -> None:
    data = load(wilds, "wilds_camelyon17")
    assert data.files["files"] == 1 + 100
    (wilds / "metadata.csv").write_text((wilds / "metadata.csv").read_text() + "\n")
    assert load(wilds, "wilds_camelyon17").files["sha256"] != data.files["sha256"]


def test_max_train_keeps_hospitals_and_classes(wilds: Path) -> None:
    data = load_set("wilds_camelyon17", root=str(wilds), image_size=16, max_train=20)
    pairs = 2 * data.sites[data.train] + data.labels.numpy()[data.train]
    assert np.bincount(pairs).tolist() == [2] * 10


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "0,000,4,0,7,0,0,0,0",
            "0,000,4,0,7,2,0,0,0",
            r"csv line 2: found tumor '2'; expected a whole number, and tumor",
        ),
        ("0,000,4,0,7,0,0,0,0", "0,000,4,-1,7,0,0,0,0", r"metadata.csv line 2: found x_coord '-1'"),
        ("0,000,4,0,7,0,0,0,0", "0,000,4,3,7,0,0,0,0", r"patch_patient_000_node_4_x_3_y_7.png: found no such file"),
        ("0,000,4,0,7,0,0,0,0", f"0,000,{'4' * 5000},0,7,0,0,0,0", r"metadata.csv line 2: found node '444"),
        ("0,000,4,0,7,0,0,0,0", f"0,000,4,0,7,0,0,{'5' * 5000},0", r"metadata.csv line 2: found center '555"),
        (",center,", ",center,center,", r"metadata.csv: found several columns center"),
        (",center,", ",hospital,", r"metadata.csv line 2: found center ''"),
        ("0,000,4,0,7,0,0,0,0", "0,000,4,0,7,0,0,5,0", r"metadata.csv center 5: found 1 patients; expected 3"),
    ],
)
def test_another_table_is_one_line(wilds: Path, old: str, new: str, message: str) -> None:
    text = (wilds / "metadata.csv").read_text(encoding="utf-8")
    assert old in text
    (wilds / "metadata.csv").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load(wilds, "wilds_camelyon17")
    assert "\n" not in str(caught.value)
