"""PRR-FL's lesions: counted as released, and kept whole by ``data.split: by_lesion``."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsim.config.data import DataConfig
from fedsim.data import Dataset, datasets, load_dataset
from fedsim.data.datasets import clients
from fedsim.data.overlap import group_overlaps
from fedsim.errors import UserError

REAL = next(
    (found for base in Path(__file__).parents if (found := base / "shared/realdata/prrfl").is_dir()),
    None,
)
pytestmark = pytest.mark.usefixtures("cache")
needs_real_tables = pytest.mark.skipif(REAL is None, reason="no shared/realdata/prrfl beside the checkout")


def load(root: Path | None, **changes: Any) -> Dataset:
    words = {"name": "dermoscopic_clients", "root": str(root), "image_size": 8}
    return load_dataset(DataConfig.model_validate(words | changes))


@pytest.fixture
def without_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tables alone: every image is black."""

    def black(*arguments: Any) -> Path:
        _, _, paths, side = arguments
        np.save(tmp_path / "images.npy", np.zeros((len(paths), 3, side, side), np.uint8))
        return tmp_path / "images.npy"

    monkeypatch.setattr(clients, "prepared_files", black)
    monkeypatch.setattr(clients, "_check_images", len)
    monkeypatch.setattr(datasets, "describe_files", lambda _: None)


def sizes_by_site(data: Dataset) -> list[list[int]]:
    assert data.sites is not None
    return [np.bincount(data.sites[part], minlength=4).tolist() for part in (data.train, data.val, data.test)]


def lesions_of(data: Dataset) -> list[set[int]]:
    assert data.groups is not None
    return [set(data.groups[part].tolist()) for part in (data.train, data.val, data.test)]


@needs_real_tables
@pytest.mark.usefixtures("without_images")
@pytest.mark.parametrize("word", [None, "released"])
def test_the_released_split_has_lesions_in_two_parts(word: str | None) -> None:
    data = load(REAL, split=word)
    assert sizes_by_site(data) == [[2091, 2708, 1144, 1400], [298, 386, 163, 199], [598, 774, 328, 401]]
    rows = {one.name: one.text for one in group_overlaps(data)}
    assert rows["same groups, own site"].split("; ") == [
        "clientA 199 of 298 val, 419 of 598 test",
        "clientB 0 of 386 val, 0 of 774 test",
        "clientC 66 of 163 val, 159 of 328 test",
        "clientD 0 of 199 val, 0 of 401 test",
    ]
    # One test image of client B has a lesion that another client trains on.
    assert rows["same groups"].startswith(
        "265 of 1,046 val images have one in train; 579 of 2,101 test images have one in train; "
    )


@needs_real_tables
@pytest.mark.usefixtures("without_images")
@pytest.mark.parametrize("seed", [0, 1])
def test_by_lesion_no_lesion_is_in_two_parts_and_sizes_are_as_released(seed: int) -> None:
    released, data = load(REAL), load(REAL, split="by_lesion", split_seed=seed)
    train, val, test = lesions_of(data)
    assert train.isdisjoint(val | test)
    assert val.isdisjoint(test)
    difference = np.array(sizes_by_site(data)) - np.array(sizes_by_site(released))
    assert np.abs(difference).max() <= 6
    assert difference[:, 3].tolist() == [0, 0, 0], "of client D no lesion is told"
    assert data.sites is not None
    for part, before in ((data.train, released.train), (data.val, released.val), (data.test, released.test)):
        counts = [
            np.bincount(data.sites[images] * 3 + data.labels.numpy()[images], minlength=12) for images in (part, before)
        ]
        assert np.abs(counts[0] - counts[1]).max() <= 3, "every class of every client keeps its share"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two clients of 40 images of 20 lesions, as released: the second image of half of the lesions is in the test."""
    base = tmp_path / "release"
    for client, first in (("clientA", 0), ("clientB", 19)):  # lesion 19 is of both
        tables, folder = base / "csv_folder" / client, base / "data" / client / "img_resize128"
        tables.mkdir(parents=True)
        folder.mkdir(parents=True)
        lines: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
        for image in range(40):
            part = "train" if image < 20 or image % 4 == 1 else "valid" if image % 4 == 3 else "test"
            lines[part].append(f"ISIC_{image},{image % 2},HAM_{first + image % 20}")
            Image.new("RGB", (128, 128), (image, first, 0)).save(folder / f"ISIC_{image}.png")
        for part, rows in lines.items():
            text = "\n".join(["image_id,label,lesion_id", *rows]) + "\n"
            (tables / f"{part}_{client}.csv").write_text(text, encoding="utf-8")
    return base


def test_by_lesion_is_drawn_from_the_split_seed(root: Path) -> None:
    first, again, other = (load(root, split="by_lesion", split_seed=seed) for seed in (3, 3, 4))
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(first, part), getattr(again, part))
    assert first.test.tolist() != other.test.tolist()


def test_the_released_split_has_no_use_for_a_seed(root: Path) -> None:
    with pytest.raises(UserError, match="split_seed: found 3 with dermoscopic_clients, which brings its split"):
        load(root, split="released", split_seed=3)


@pytest.mark.parametrize("seed", range(5))
def test_a_lesion_of_two_clients_goes_to_one_part(root: Path, seed: int) -> None:
    assert group_overlaps(load(root))[1].text == (
        "clientA 5 of 5 val, 10 of 10 test; clientB 5 of 5 val, 10 of 10 test"
    )
    train, val, test = lesions_of(load(root, split="by_lesion", split_seed=seed))
    assert train.isdisjoint(val | test)
    assert val.isdisjoint(test)
    assert len(train | val | test) == 39


def test_flags_and_blanks_under_lesion_id_are_no_lesions(root: Path) -> None:
    for table in root.glob("csv_folder/clientB/*.csv"):
        table.write_text(table.read_text(encoding="utf-8").replace("HAM_3", "0").replace("HAM_2", ""), encoding="utf-8")
    data, released = load(root, split="by_lesion"), load(root)
    assert data.groups is not None
    groups, at_b = data.groups[40:], np.arange(40, 80)
    assert len(set(groups.tolist())) == 40 - 1, "only lesion 19 is told, of two images"
    for part in ("train", "val", "test"):
        told = np.flatnonzero(groups == groups[0]) + 40
        stays = np.setdiff1d(at_b, told)
        np.testing.assert_array_equal(
            np.intersect1d(getattr(data, part), stays), np.intersect1d(getattr(released, part), stays)
        )


def test_tables_without_lesions_have_no_groups_and_no_split_by_lesion(root: Path) -> None:
    for table in root.glob("csv_folder/*/*.csv"):
        table.write_text(table.read_text(encoding="utf-8").replace("lesion_id", "lesion"), encoding="utf-8")
    assert load(root).groups is None
    with pytest.raises(UserError, match=r"data.split by_lesion, .*csv_folder: found no lesion_id; expected ids .*HAM_"):
        load(root, split="by_lesion")


@pytest.mark.parametrize("word", ["released", "by_lesion"])
def test_a_set_without_lesions_refuses_the_word(word: str) -> None:
    with pytest.raises(ValueError, match=rf"{word} with name: brain_mri"):
        DataConfig.model_validate({"name": "brain_mri", "split": word})
