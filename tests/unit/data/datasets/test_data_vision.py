"""CIFAR's binary version and Flowers-102, from small files in the published formats."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io  # type: ignore[import-untyped]  # scipy has no types
from PIL import Image

from fedsim.build import build_simulation
from fedsim.comm.group import open_group
from fedsim.config.data import DataConfig
from fedsim.configure import load_config
from fedsim.data.images import resized
from fedsim.errors import UserError
from tests.helpers import load_set, play

pytestmark = pytest.mark.usefixtures("cache")
ROOT = Path(__file__).parents[4]
BATCHES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


def records(number: int, num_classes: int, seed: int, coarse: bool = False) -> np.ndarray:
    """Rows of label bytes and 3,072 bytes of pixels; every class occurs in turn."""
    stream = np.random.default_rng(seed)
    labels = (np.arange(number) % num_classes).astype(np.uint8)[:, None]
    front = [labels // 5, labels] if coarse else [labels]
    return np.concatenate([*front, stream.integers(0, 256, (number, 3072), np.uint8)], axis=1)


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    """Five batches of 40 images and 20 for the test."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for seed, name in enumerate(BATCHES):
        records(20 if name == "test_batch.bin" else 40, 10, seed).tofile(folder / name)
    return folder


@pytest.fixture
def cifar100(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    records(500, 100, 0, coarse=True).tofile(folder / "train.bin")
    records(100, 100, 1, coarse=True).tofile(folder / "test.bin")
    (folder / "fine_label_names.txt").write_text("\n".join(f"thing_{n}" for n in range(100)) + "\n")
    return folder


def write_flowers(root: Path, labels: list[int], parts: tuple[list[int], list[int], list[int]]) -> Path:
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for number, label in enumerate(labels, start=1):
        Image.new("RGB", (40 + number, 50), (2 * label, 100, 5 * number)).save(folder / f"jpg/image_{number:05d}.jpg")
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)}, do_compression=True)
    names = ("trnid", "valid", "tstid")
    ids = {name: np.array([part], np.uint16) for name, part in zip(names, parts, strict=True)}
    scipy.io.savemat(folder / "setid.mat", ids)
    return folder


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Ten flowers of four kinds; the last is in no split."""
    return write_flowers(tmp_path, [3, 3, 102, 3, 102, 1, 1, 2, 102, 2], ([9, 2, 6], [4, 3], [1, 5, 7, 8]))


def test_cifar10_has_its_test_and_a_validation_out_of_training(cifar10: Path) -> None:
    data = load_set("torchvision:cifar10", root=str(cifar10.parent), image_size=32)
    assert data.test.tolist() == list(range(200, 220))
    assert (len(data.train), len(data.val)) == (170, 30)
    assert data.class_names[9] == "truck"
    assert data.labels.tolist() == [n % 10 for n in range(40)] * 5 + [n % 10 for n in range(20)]
    third = records(40, 10, 2)[:, 1:].reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(data.images[80:120].numpy(), third)
    other = load_set("torchvision:cifar10", root=str(cifar10.parent), image_size=32, split_seed=1)
    assert other.test.tolist() == data.test.tolist()
    assert other.val.tolist() != data.val.tolist()


def test_cifar100_takes_the_fine_classes(cifar100: Path) -> None:
    data = load_set("torchvision:cifar100", root=str(cifar100.parent), image_size=24)
    assert data.images.shape == (600, 3, 24, 24)
    assert data.class_names[:2] == ("thing_0", "thing_1")
    assert (len(data.train), len(data.val), len(data.test)) == (400, 100, 100)
    assert data.labels.tolist() == list(range(100)) * 6
    first = records(500, 100, 0, coarse=True)[0, 2:].reshape(3, 32, 32)
    want = resized(Image.fromarray(first.transpose(1, 2, 0)), 24, 24)
    np.testing.assert_array_equal(data.images[0].numpy(), want)


def test_the_config_of_a_hundred_clients_runs_on_it(cifar100: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ViT-B's own name, small, on small images; all else as in the file."""
    monkeypatch.chdir(cifar100.parent)
    small = ["data.root=.", "data.image_size=32", "model.weights=random", "rounds=2"]
    small.append("model.options={embed_dim: 32, depth: 1, num_heads: 2}")
    config = load_config(ROOT / "configs/lora/cifar100.yaml", small)
    sim = build_simulation(config, open_group())
    assert len(sim.parts) == 100
    assert sum(map(len, sim.parts)) == 400
    assert len(sim.dataset.class_names) == 100
    _, (first, second) = play(sim, 2)
    assert {row["client"] for row in first.client_rows} != {row["client"] for row in second.client_rows}
    assert 0 < len(first.client_rows) <= 10


def test_flowers_have_the_authors_split(flowers: Path) -> None:
    data = load_set("torchvision:flowers102", root=str(flowers.parent), image_size=16)
    assert len(data.class_names) == 102
    assert data.class_names[0] == "pink primrose"
    assert data.labels.tolist() == [101, 2, 0, 2, 101, 2, 101, 0, 1]
    assert (data.train.tolist(), data.val.tolist(), data.test.tolist()) == ([0, 1, 2], [3, 4], [5, 6, 7, 8])
    np.testing.assert_allclose(data.images[0, :, 8, 8].numpy(), [204, 100, 45], atol=3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10", r"cifar-10-batches-bin: found no data_batch_1.bin, .*cifar-10-binary.tar.gz .*cs.toronto.edu"),
        ("cifar100", r"cifar-100-binary: found no train.bin, .*cifar-100-binary.tar.gz"),
        ("flowers102", r"flowers-102/imagelabels.mat: .*<root>/flowers-102/ with jpg/.*robots.ox.ac.uk"),
    ],
)
def test_a_missing_set_names_its_folder_and_source(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_set(f"torchvision:{name}", root=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_the_folder_must_be_named() -> None:
    with pytest.raises(ValueError, match="root"):
        DataConfig.model_validate({"name": "torchvision:cifar10"})


def test_half_a_file_of_cifar_is_refused(cifar10: Path) -> None:
    whole = (cifar10 / BATCHES[2]).read_bytes()
    (cifar10 / BATCHES[2]).write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"data_batch_3.bin: found 122919 bytes; expected .* records of 3073 bytes"):
        load_set("torchvision:cifar10", root=str(cifar10.parent))


def test_the_pickled_version_of_cifar_is_not_read(cifar10: Path) -> None:
    for name in BATCHES:
        (cifar10 / name).rename(cifar10 / name.removesuffix(".bin"))
    cifar10.rename(cifar10.with_name("cifar-10-batches-py"))
    with pytest.raises(UserError, match="binary version"):
        load_set("torchvision:cifar10", root=str(cifar10.parent))


def test_a_label_of_no_class_is_refused(cifar10: Path, cifar100: Path) -> None:
    records(600, 120, 0, coarse=True).tofile(cifar100 / "train.bin")
    with pytest.raises(UserError, match="found label 119; expected labels of the 100 classes"):
        load_set("torchvision:cifar100", root=str(cifar100.parent))
    records(40, 11, 0).tofile(cifar10 / BATCHES[0])
    with pytest.raises(UserError, match="found label 10; expected labels of the 10 classes"):
        load_set("torchvision:cifar10", root=str(cifar10.parent))


@pytest.mark.parametrize(
    ("labels", "parts", "message"),
    [
        ([1, 2, 3], ([1], [2], [4]), r"setid.mat: found image 4; expected numbers from 1 to 3"),
        ([1, 103, 3], ([1], [2], [3]), r"imagelabels.mat: found label 103; expected numbers from 1 to 102"),
        ([0, 2, 3], ([1], [2], [3]), r"imagelabels.mat: found label 0"),
    ],
)
def test_flowers_that_do_not_fit_are_refused(
    tmp_path: Path, labels: list[int], parts: tuple[list[int], list[int], list[int]], message: str
) -> None:
    write_flowers(tmp_path, labels, parts)
    with pytest.raises(UserError, match=message):
        load_set("torchvision:flowers102", root=str(tmp_path))


def test_flowers_without_an_image_or_with_a_broken_file(flowers: Path) -> None:
    (flowers / "jpg" / "image_00005.jpg").unlink()
    with pytest.raises(UserError, match=r"image_00005.jpg: found no such file"):
        load_set("torchvision:flowers102", root=str(flowers.parent))
    path = flowers / "imagelabels.mat"
    for content in (b"", path.read_bytes()[:150], b"x" * 500):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"imagelabels.mat: found .*; expected numbers 'labels'"):
            load_set("torchvision:flowers102", root=str(flowers.parent))
    for other in ({"others": np.ones(3)}, {"labels": np.array([1.5])}, {"labels": np.array([np.nan])}):
        scipy.io.savemat(path, other)
        with pytest.raises(UserError, match=r"imagelabels.mat: found .*'labels'.*; expected numbers 'labels'"):
            load_set("torchvision:flowers102", root=str(flowers.parent))


@pytest.mark.parametrize("content", [b"apple\n", b"thing\n" * 100, b"\xff\xfe"])
def test_names_of_cifar_that_are_not_a_hundred_are_refused(cifar100: Path, content: bytes) -> None:
    (cifar100 / "fine_label_names.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"fine_label_names.txt: found .*; expected the names of 100 classes"):
        load_set("torchvision:cifar100", root=str(cifar100.parent))


def test_a_set_of_other_counts_than_the_published_is_remarked_upon(cifar10: Path, flowers: Path) -> None:
    data = load_set("torchvision:cifar10", root=str(cifar10.parent))
    assert data.remarks == (f"{cifar10} is not the published set: 200/20 images, published 50000/10000",)
    assert data.files["files"] == 6
    data = load_set("torchvision:flowers102", root=str(flowers.parent))
    assert data.remarks == (f"{flowers} is not the published set: 3/2/4 images, published 1020/1020/6149",)
    assert "setid.mat" in data.files["each"]


def test_a_pipe_in_place_of_a_table_is_not_waited_for(flowers: Path) -> None:
    (flowers / "setid.mat").unlink()
    os.mkfifo(flowers / "setid.mat")
    with pytest.raises(UserError, match=r"setid.mat: found no file, but a folder or device"):
        load_set("torchvision:flowers102", root=str(flowers.parent))
