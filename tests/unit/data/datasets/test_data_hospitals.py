"""Image folders of several hospitals: which layout is read as what, and whose the images are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsim.data import divide_held_out, partition_clients
from fedsim.errors import UserError
from tests.helpers import load_set, make_config

pytestmark = pytest.mark.usefixtures("cache")
HOSPITALS = ("Bern", "Graz", "Ulm")


def make_hospital(folder: Path, value: int, count: int = 10, classes: tuple[str, ...] = ("a", "b")) -> None:
    """Images whose red tells the hospital."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (value, number, 0)).save(folder / name / f"patient{number // 2}_{number}.png")


def load(root: Path, **words: Any) -> Any:
    return load_set("image_folder", root=str(root), image_size=8, **words)


@pytest.mark.parametrize("splits", [(), ("train", "val", "test"), ("train", "test")])
def test_every_hospital_is_a_site_with_its_own_held_out_images(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for value, name in enumerate(HOSPITALS):
        for split in splits or (".",):
            make_hospital(tmp_path / "set" / name / split, value)
    data = load(tmp_path / "set")
    assert (data.site_names, data.class_names) == (HOSPITALS, ("a", "b"))
    assert data.sites.tolist() == data.images[:, 0, 0, 0].tolist()
    assert data.drawn == {0: ("val", "test"), 2: ("val",), 3: ()}[len(splits)]
    assert any("the folders of" in remark and "Bern, Graz, Ulm" in remark for remark in data.remarks)
    clients = make_config(clients={"count": 3, "partition": {"name": "sites"}}).clients
    parts = partition_clients(data, clients, 0)
    held_out = divide_held_out(data, clients, parts, 0)
    for site in range(3):
        for part in (parts[site], held_out["val"][site], held_out["test"][site]):
            assert set(data.images[part, 0, 0, 0].tolist()) == {site}
            assert set(data.labels[part].tolist()) == {0, 1}


def test_a_hospital_may_lack_a_class(tmp_path: Path) -> None:
    make_hospital(tmp_path / "set/Bern", 0)
    make_hospital(tmp_path / "set/Graz", 1, classes=("b", "c"))
    data = load(tmp_path / "set")
    assert data.class_names == ("a", "b", "c")
    assert set(data.labels[data.sites == 1].tolist()) == {1, 2}


def test_patients_are_told_by_the_files_names(tmp_path: Path) -> None:
    for value, name in enumerate(HOSPITALS):
        make_hospital(tmp_path / "set" / name, value)
    data = load(tmp_path / "set", patient=r"^(.+)_[0-9]+\.png$")
    assert len(set(data.groups.tolist())) == 3 * 2 * 5
    parts = [set(data.groups[part].tolist()) for part in (data.train, data.val, data.test)]
    assert parts[0].isdisjoint(parts[1] | parts[2])
    assert parts[1].isdisjoint(parts[2])
    assert len(set(load(tmp_path / "set", patient="patient[0-9]").groups.tolist())) == 5
    message = (
        r"data.patient '\^slide': found nothing in 60 of 60 files, such as Bern/a/patient0_0.png; expected a regular"
    )
    with pytest.raises(UserError, match=message):
        load(tmp_path / "set", patient="^slide")


def test_hospitals_with_other_splits_are_one_line(tmp_path: Path) -> None:
    for split in ("train", "test"):
        make_hospital(tmp_path / "set/Bern" / split, 0, 2)
    make_hospital(tmp_path / "set/Graz/train", 1, 2)
    with pytest.raises(UserError, match=r"set/Graz: found the splits train; expected train, test, as Bern has"):
        load(tmp_path / "set")
    make_hospital(tmp_path / "set/Graz/test", 1, 2, ("a", "d"))
    with pytest.raises(UserError, match=r"Graz/test/d: found a class that train does not have; expected a, b"):
        load(tmp_path / "set")


def test_an_image_beside_the_folders_makes_a_class_of_a_hospital(tmp_path: Path) -> None:
    """Half a class and half a hospital: the folder without images is refused, as it always was."""
    make_hospital(tmp_path / "set/Bern", 0, 2)
    make_hospital(tmp_path / "set", 1, 2, ("Graz",))
    with pytest.raises(UserError, match=r"set/Bern: found no image; expected files that end in"):
        load(tmp_path / "set")


@pytest.mark.parametrize("splits", [(), ("train", "val", "test")])
def test_one_site_is_left_out_by_one_key(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for value, name in enumerate(HOSPITALS):
        for split in splits or (".",):
            make_hospital(tmp_path / "set" / name / split, value)
    data = load(tmp_path / "set", external_sites=["Graz"])
    assert data.test.tolist() == np.flatnonzero(data.sites == 1).tolist()
    for part in (data.train, data.val):
        assert set(data.sites[part].tolist()) == {0, 2}
    unused = "; 40 test images of the other sites are in no split" if splits else ""
    assert f"the test is site Graz, where nobody trains{unused}" in data.remarks
    clients = make_config(clients={"count": 2, "partition": {"name": "sites"}}).clients
    parts = partition_clients(data, clients, 0)
    assert [set(data.sites[part].tolist()) for part in parts] == [{0}, {2}]
    held_out = divide_held_out(data, clients, parts, 0)
    assert [set(data.sites[part].tolist()) for part in held_out["val"]] == [{0}, {2}]
    assert [len(part) for part in held_out["test"]] == [0, 0]
    short = load(tmp_path / "set", external_sites=["Graz"], truncate_to_smallest=True)
    assert set(short.sites[short.train].tolist()) == {0, 2}


def test_sites_that_cannot_be_left_out_are_one_line(tmp_path: Path) -> None:
    for value, name in enumerate(HOSPITALS):
        make_hospital(tmp_path / "set" / name, value)
    with pytest.raises(UserError, match=r"data.external_sites: found 'Grz'; expected Graz \(nearest"):
        load(tmp_path / "set", external_sites=["Grz"])
    with pytest.raises(UserError, match=r"data.external_sites: found all 3 sites; expected a site that is trained on"):
        load(tmp_path / "set", external_sites=list(HOSPITALS))
    with pytest.raises(UserError, match=r"data.external_sites: found 'Graz'; expected a data set with natural sites"):
        load(tmp_path / "set/Graz", external_sites=["Graz"])
    data = load(tmp_path / "set", external_sites=["Graz"])
    clients = make_config(clients={"count": 3, "partition": {"name": "sites"}}).clients
    with pytest.raises(UserError, match=r"count: found 3; expected a multiple of the 2 natural sites that are tr"):
        partition_clients(data, clients, 0)
