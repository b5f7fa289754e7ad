"""MedMNIST sets, from files as the tests write them."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import medmnist
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
        arrays[f"{name}_labels"] = rng.permutation(np.arange(count) % num_classes)[:, None].astype(np.uint8)
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
        ({"train_labels": np.zeros((600, 1), np.uint8)}, r"train_labels without class 1"),
        ({"train_labels": np.full((600, 1), "0")}, r"train_labels <U1\(600, 1\)"),
        ({"train_labels": np.full((600, 1), b"0")}, r"train_labels \|S1\(600, 1\)"),
        ({"train_labels": np.zeros((600, 1), [("a", np.uint8)])}, r"train_labels \[\('a', 'u1'\)\]\(600, 1\)"),
        ({"train_labels": np.array(0, np.uint8)}, r"train_labels uint8\(\)"),
        ({"test_labels": np.zeros((0, 1), np.uint8)}, r"test_labels uint8\(0, 1\)"),
        ({"test_labels": np.zeros((0,), np.uint8)}, r"test_labels uint8\(0,\)"),
        ({"test_labels": np.zeros((0, 2), np.uint8)}, r"test_labels uint8\(0, 2\)"),
        ({"train_labels": np.array([[None]] * 600)}, r"train_labels object\(600, 1\)"),
        ({"train_images": np.zeros((600, 28, 28))}, r"train_images float64\(600, 28, 28\)"),
        ({"train_images": np.zeros((600, 0, 0), np.uint8)}, r"train_images uint8\(600, 0, 0\) in a file of side 28"),
        ({"val_images": np.zeros((10, 30, 30), np.uint8)}, r"val_images uint8\(10, 30, 30\) in a file of side 28"),
        ({"train_images": np.zeros((599, 28, 28), np.uint8)}, "599 train_images with 600 labels"),
        # As many images as labels together, yet those of val and test would have each other's labels.
        (
            {"val_images": np.zeros((11, 28, 28), np.uint8), "test_images": np.zeros((11, 28, 28), np.uint8)},
            "11 val_images with 10 labels",
        ),
        ({"val_images": np.zeros((10, 28, 28, 3), np.uint8)}, "val_images of another kind than those of train"),
    ],
)
def test_medmnist_that_is_not_as_published_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_medmnist(tmp_path / "breastmnist.npz", 28, **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_set("medmnist:breastmnist", root=str(tmp_path), image_size=28)
    assert "breastmnist.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def archive_of(name: str, content: bytes) -> bytes:
    """An archive with one member."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, content)
    return made.getvalue()


def array(shape: str = "(600, 1)") -> bytes:
    """600 labels, whose header may promise more."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(600)


def with_byte(archive: bytes, place: int, value: int) -> bytes:
    """The archive with another byte in the entry of its only member: 8 holds flags (1: encrypted), 10 the method."""
    at = archive.index(b"PK\x01\x02") + place
    return archive[:at] + bytes([value]) + archive[at + 1 :]


LABELS = archive_of("train_labels.npy", array())


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a zip file"),
        (array(), "not a zip file"),  # one array as NumPy saves it, under the name of an archive
        (with_byte(LABELS, 8, 1), "encrypted"),
        (with_byte(LABELS, 10, 99), "compression"),
        (
            archive_of("train_labels.npy", array("(1000000000000000, 1)")),
            r"train_labels of another size than uint8\(1000000000000000, 1\)",
        ),
        (archive_of("train_labels.npy", b"x" * 99), "magic"),
    ],
    ids=["empty", "array", "encrypted", "method", "size", "no array"],
)
def test_a_file_that_is_no_archive_of_arrays_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "breastmnist.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_set("medmnist:breastmnist", root=str(tmp_path), image_size=28)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("cache")
def test_a_folder_in_the_place_of_the_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "breastmnist.npz").mkdir()
    with pytest.raises(UserError, match=r"breastmnist\.npz: found no file, but a folder or device; expected a file"):
        load_set("medmnist:breastmnist", root=str(tmp_path), image_size=28)


@pytest.mark.usefixtures("cache")
def test_labels_in_a_row_are_taken(tmp_path: Path) -> None:
    """Some copies have labels (N,), which lose nothing against the published (N, 1)."""
    write_medmnist(tmp_path / "breastmnist.npz", 28)
    published = load_set("medmnist:breastmnist", root=str(tmp_path), image_size=28).labels
    with np.load(tmp_path / "breastmnist.npz") as arrays:
        rows = {key: value[:, 0] if key.endswith("labels") else value for key, value in arrays.items()}
    np.savez(tmp_path / "breastmnist.npz", **rows)
    assert load_set("medmnist:breastmnist", root=str(tmp_path), image_size=28).labels.tolist() == published.tolist()


@pytest.mark.usefixtures("cache")
def test_a_file_that_is_not_the_published_one_is_remarked_upon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "breastmnist.npz"
    write_medmnist(path, 28)

    def remarks() -> tuple[str, ...]:
        found: tuple[str, ...] = load_set("medmnist:breastmnist", root=str(tmp_path), image_size=28).remarks
        return found

    where = f"{path} is not the published"
    assert remarks() == (f"{where} breastmnist: 600/10/12 images in train/val/test, published 546/78/156",)
    monkeypatch.setitem(medmnist.INFO["breastmnist"], "n_samples", {"train": 600, "val": 10, "test": 12})
    digest, published = hashlib.md5(path.read_bytes()).hexdigest(), medmnist.INFO["breastmnist"]["MD5"]
    assert remarks() == (f"{where} file of breastmnist, whose counts it has: MD5 {digest}, published {published}",)
    monkeypatch.setitem(medmnist.INFO["breastmnist"], "MD5", digest)
    assert remarks() == ()


@pytest.mark.usefixtures("cache")
def test_half_a_medmnist_file_is_refused(tmp_path: Path) -> None:
    write_medmnist(tmp_path / "breastmnist.npz", 28)
    whole = (tmp_path / "breastmnist.npz").read_bytes()
    (tmp_path / "breastmnist.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"breastmnist.npz"):
        load_set("medmnist:breastmnist", root=str(tmp_path), image_size=28)
