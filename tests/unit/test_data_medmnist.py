"""MedMNIST sets, from files as the tests write them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsim.data.datasets import med
from fedsim.data.images import resized
from fedsim.errors import UserError
from tests.helpers import load_set

TRAIN_IMAGES = {28: 600, 64: 50, 128: 20, 224: 20}  # 28: more than are unpacked at once


def write_medmnist(path: Path, side: int, channels: int = 1, num_classes: int = 2, **changes: Any) -> None:
    """A small file in the published form."""
    rng = np.random.default_rng(0)
    shape = (side, side) if channels == 1 else (side, side, channels)
    arrays: dict[str, Any] = {}
    for name, count in (("train", TRAIN_IMAGES[side]), ("val", 10), ("test", 12)):
        arrays[f"{name}_images"] = rng.integers(0, 256, (count, *shape), np.uint8)
        arrays[f"{name}_labels"] = rng.integers(0, num_classes, (count, 1), np.uint8)
    arrays = {key: value for key, value in (arrays | changes).items() if value is not None}
    np.savez_compressed(path, **arrays)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("flag", "channels"), [("breastmnist", 1), ("bloodmnist", 3)])
@pytest.mark.parametrize(("side", "suffix"), [(28, ""), (64, "_64"), (128, "_128"), (224, "_224")])
def test_medmnist_is_read_with_its_own_split(tmp_path: Path, flag: str, channels: int, side: int, suffix: str) -> None:
    path = tmp_path / f"{flag}{suffix}.npz"
    write_medmnist(path, side, channels, num_classes=2 if channels == 1 else 8)
    data = load_set(f"medmnist:{flag}", root=str(tmp_path), image_size=side)
    assert (len(data.train), len(data.val), len(data.test)) == (TRAIN_IMAGES[side], 10, 12)
    assert data.images.shape == (TRAIN_IMAGES[side] + 22, 3, side, side)
    with np.load(path) as arrays:
        want = np.concatenate([arrays[f"{name}_images"] for name in ("train", "val", "test")])
        labels = np.concatenate([arrays[f"{name}_labels"] for name in ("train", "val", "test")])[:, 0]
    want = np.stack([want] * 3, 1) if channels == 1 else want.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(data.images.numpy(), want)
    np.testing.assert_array_equal(data.labels.numpy(), labels)
    assert data.class_names[0] == {"breastmnist": "malignant", "bloodmnist": "basophil"}[flag]


@pytest.mark.usefixtures("cache")
def test_medmnist_between_the_published_sizes_is_shrunk_from_the_next(tmp_path: Path) -> None:
    write_medmnist(tmp_path / "breastmnist_64.npz", 64)
    data = load_set("medmnist:breastmnist", root=str(tmp_path), image_size=56)
    with np.load(tmp_path / "breastmnist_64.npz") as arrays:
        first = Image.fromarray(arrays["train_images"][0])
    np.testing.assert_array_equal(data.images[0, :1].numpy(), resized(first, 56, 56))


@pytest.mark.usefixtures("cache")
def test_medmnist_that_is_missing_names_the_file_and_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(med, "_download", fail)
    with pytest.raises(UserError, match=r"octmnist_64.npz: found no such file.*medmnist.INFO\['octmnist'\]"):
        load_set("medmnist:octmnist", root=str(tmp_path), image_size=64)
    with pytest.raises(UserError, match=r"absent: found no such folder; expected .*octmnist_64.npz"):
        load_set("medmnist:octmnist", root=str(tmp_path / "absent"), image_size=64)


@pytest.mark.usefixtures("cache")
def test_medmnist_download_goes_through_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, root: str, filename: str, md5: str) -> None:
        assert url.startswith("https://zenodo.org/")
        assert len(md5) == 32
        write_medmnist(Path(root) / filename, 28)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    data = load_set("medmnist:breastmnist", root=str(tmp_path), image_size=28)
    assert len(data.labels) == 622
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["breastmnist.npz"]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": None}, "val_labels"),
        ({"test_images": None}, "test_images"),
        ({"train_labels": np.full((600, 1), 2, np.uint8)}, r"train_labels uint8\(600, 1\) within \[2, 2\]"),
        ({"train_labels": np.zeros((600, 14), np.uint8)}, r"train_labels uint8\(600, 14\)"),
        ({"train_images": np.zeros((600, 28, 28))}, r"images float64\(600, 28, 28\)"),
        ({"train_images": np.zeros((599, 28, 28), np.uint8)}, "621 images with 622 labels"),
        ({"val_images": np.zeros((11, 28, 28), np.uint8)}, "more images than the 622 labels"),
        ({"val_images": np.zeros((10, 28, 28, 3), np.uint8)}, "of several kinds"),
        ({"train_labels": np.array([[None]] * 600)}, "allow_pickle"),
    ],
)
def test_medmnist_that_is_not_as_published_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_medmnist(tmp_path / "breastmnist.npz", 28, **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_set("medmnist:breastmnist", root=str(tmp_path), image_size=28)
    assert "breastmnist.npz" in str(caught.value)


@pytest.mark.usefixtures("cache")
def test_half_a_medmnist_file_is_refused(tmp_path: Path) -> None:
    write_medmnist(tmp_path / "breastmnist.npz", 28)
    whole = (tmp_path / "breastmnist.npz").read_bytes()
    (tmp_path / "breastmnist.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"breastmnist.npz"):
        load_set("medmnist:breastmnist", root=str(tmp_path), image_size=28)


def test_a_multi_label_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="medmnist:chestmnist, a multi-label set"):
        load_set("medmnist:chestmnist", root=str(tmp_path))
