"""The image sets: packaged ones as published, folders as the tests write them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedsim.catalogue.data import DATA
from fedsim.config.data import DataConfig
from fedsim.data import load_dataset
from fedsim.data.images import resized
from fedsim.errors import UserError
from tests.helpers import class_counts, load_set

# --- packaged sets


@pytest.mark.parametrize("name", [row.name for row in DATA.values() if row.root == "none" and not row.texts])
def test_packaged_sets_keep_the_contract(name: str) -> None:
    data = load_set(name, image_size=28)
    num_images = len(data.labels)
    assert data.images.shape == (num_images, 3, 28, 28)
    assert data.images.dtype == torch.uint8
    assert data.labels.dtype == torch.int64
    classes = data.labels if data.masks is None else data.masks
    assert classes.unique().tolist() == list(range(len(data.class_names)))
    everything = np.concatenate([data.train, data.val, data.test])
    np.testing.assert_array_equal(np.sort(everything), np.arange(num_images))
    for part in (data.train, data.val, data.test):
        assert part.dtype == np.int64
        assert np.all(np.diff(part) > 0)


@pytest.mark.parametrize("name", ["brain_mri", "dermoscopy_pairs"])
@pytest.mark.parametrize("split_seed", [0, 1])
def test_no_group_leaks_between_the_splits(name: str, split_seed: int) -> None:
    data = load_set(name, split_seed=split_seed)
    held = [set(data.groups[part].tolist()) for part in (data.train, data.val, data.test)]
    assert sum(map(len, held)) == len(held[0] | held[1] | held[2])
    tolerance = {"brain_mri": 0.05, "dermoscopy_pairs": 0.01}[name]  # the largest groups are of 77 and 10 images
    for part, share in (("train", 0.65), ("val", 0.15), ("test", 0.2)):
        per_class = np.array(class_counts(data, part)) / np.bincount(data.labels)
        np.testing.assert_allclose(per_class, share, atol=tolerance)


def test_brain_mri_has_the_published_sites() -> None:
    data = load_set("brain_mri")
    counts = [np.bincount(data.labels[data.sites == site]).tolist() for site in range(len(data.site_names))]
    assert counts == [[120, 25], [804, 265], [181, 848], [252, 156], [143, 206]]


def test_every_site_of_brain_mri_has_slices_in_each_split() -> None:
    data = load_set("brain_mri", max_train=800)
    counts = [np.bincount(data.sites[part], minlength=5).tolist() for part in (data.train, data.val, data.test)]
    assert counts == [[45, 275, 269, 104, 82], [51, 204, 152, 57, 64], [9, 228, 189, 81, 59]]


def test_dermoscopy_pairs_are_two_patches_without_the_identical_ones() -> None:
    data = load_set("dermoscopy_pairs", image_size=64)
    assert np.bincount(data.labels).tolist() == [995, 936]
    assert len(set(data.groups.tolist())) == 199
    left, right = data.images[..., :32], data.images[..., 32:]
    assert (left != right).flatten(1).any(1).all()
    assert load_set("dermoscopy_pairs", image_size=29).images.shape == (1931, 3, 29, 29)


def test_pixels_are_prepared_once_and_mapped(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    first = make_classes(cache.parent / "set")
    before = load_set("image_folder", root=str(first), image_size=8)
    monkeypatch.setattr("fedsim.data.images.read_rgb", lambda _: pytest.fail("decoded again"))
    after = load_set("image_folder", root=str(first), image_size=8)
    assert torch.equal(before.images, after.images)
    (file,) = cache.glob("image_folder-*/images.npy")
    assert str(file) in Path("/proc/self/maps").read_text(encoding="utf-8")


# --- image folders


def make_image(path: Path, value: int, size: tuple[int, int] = (20, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255 - value)).save(path)


def cut_in_half(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_classes(root: Path, count: int = 20) -> Path:
    for index in range(count):
        make_image(root / "polyp" / f"{index:03}.png", index)
        make_image(root / "cecum" / f"{index:03}.bmp", 100 + index)
    return root


@pytest.mark.usefixtures("cache")
def test_a_folder_of_classes_is_read_and_split(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "kvasir")
    (root / "polyp" / "notes.txt").touch()
    (root / "polyp" / "._000.png").touch()
    (root / ".thumbnails").mkdir()
    data = load_set("image_folder", root=str(root), image_size=8)
    assert data.class_names == ("cecum", "polyp")
    assert [class_counts(data, part) for part in ("train", "val", "test")] == [[13, 13], [3, 3], [4, 4]]
    assert data.images.shape == (40, 3, 8, 8)
    assert data.images[0, :, 0, 0].tolist() == [100, 0, 155]
    assert data.images[39, :, 7, 7].tolist() == [19, 0, 236]


@pytest.mark.usefixtures("cache")
def test_a_folder_with_its_own_split_is_kept_and_a_missing_val_is_drawn(tmp_path: Path) -> None:
    root = tmp_path / "oct"
    for part in ("train", "val", "test"):
        make_classes(root / part)
    data = load_set("image_folder", root=str(root), image_size=8)
    assert data.class_names == ("cecum", "polyp")
    np.testing.assert_array_equal(data.val, np.arange(40, 80))
    np.testing.assert_array_equal(data.test, np.arange(80, 120))
    shutil.rmtree(root / "val")
    data = load_set("image_folder", root=str(root), image_size=8)
    assert (len(data.train), len(data.val), len(data.test)) == (34, 6, 40)


@pytest.mark.usefixtures("cache")
def test_a_changed_file_is_decoded_again(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "set")
    load_set("image_folder", root=str(root), image_size=8)
    make_image(root / "cecum" / "000.bmp", 7, size=(30, 30))
    assert load_set("image_folder", root=str(root), image_size=8).images[0, 0, 0, 0] == 7


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root), r"set: found no such folder; expected <root>/<class>"),
        (lambda root: shutil.rmtree(root / "polyp"), r"set: found 1 class folders; expected at least two"),
        (lambda root: (root / "empty").mkdir(), r"set/empty: found no image; expected files that end in"),
        (
            lambda root: (root / "polyp/003.png").write_bytes(b"no"),
            r"polyp/003.png: found an unreadable image",
        ),
        (
            lambda root: cut_in_half(root / "polyp/003.png"),
            r"polyp/003.png: found an unreadable image \(.*[Tt]runcated",
        ),
        (
            lambda root: Image.fromarray(np.zeros((9, 9), np.uint16)).save(root / "polyp/003.png"),
            r"polyp/003.png: found pixels of mode I;16; expected an image with 8 bits",
        ),
    ],
)
def test_a_spoilt_folder_is_one_line(tmp_path: Path, spoil: Any, message: str) -> None:
    root = make_classes(tmp_path / "set")
    spoil(root)
    with pytest.raises(UserError, match=message):
        load_set("image_folder", root=str(root), image_size=8)


def test_a_class_that_train_does_not_have_is_refused(tmp_path: Path) -> None:
    make_classes(tmp_path / "train")
    make_image(tmp_path / "test" / "ulcer" / "0.png", 1)
    with pytest.raises(UserError, match=r"test/ulcer: found a class that train does not have; .* cecum, polyp"):
        load_set("image_folder", root=str(tmp_path), image_size=8)


def test_an_unknown_set_is_answered_with_the_nearest_and_all() -> None:
    config = DataConfig.model_validate({"name": "digits"}).model_copy(update={"name": "brain_mir"})
    with pytest.raises(UserError, match=r"'brain_mir'; expected brain_mri \(nearest; known: .*digits"):
        load_dataset(config)


# --- images


def test_resizing_stretches_and_averages_what_it_shrinks() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (32, 32))  # one pixel wide: nearest would keep one colour
    small = resized(Image.fromarray(stripes), 8, 8)
    assert small.shape == (1, 8, 8)
    assert np.all(np.abs(small.astype(int) - 127) < 40)
