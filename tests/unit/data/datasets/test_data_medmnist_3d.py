"""MedMNIST's volumes: which slices are read, how they are prepared, and what is refused."""

from pathlib import Path
from typing import Any

import medmnist
import numpy as np
import pytest
import torch
from PIL import Image

from fedsim.catalogue.data import DATA
from fedsim.config.data import DataConfig
from fedsim.data.datasets.med import evenly_spaced
from fedsim.data.images import resized
from fedsim.data.overlap import overlaps, same_pictures
from fedsim.errors import UserError
from fedsim.inputs.images import ImageSource
from fedsim.models.build import build_models
from tests.helpers import class_counts, load_set, make_config

COUNTS = {"train": 24, "val": 6, "test": 8}
REAL = next(
    (
        found
        for base in Path(__file__).parents
        if (found := base / "shared/realdata/medmnist_adrenal/adrenalmnist3d.npz").is_file()
    ),
    None,
)


def write_volumes(path: Path, side: int = 28, **changes: Any) -> None:
    """A small file in the published form: dim cubes of noise, brighter where the label is 1."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for name, count in COUNTS.items():
        labels = rng.permutation(np.arange(count) % 2)
        noise = rng.integers(0, 100, (count, side, side, side))
        arrays[f"{name}_images"] = (noise + 100 * labels[:, None, None, None]).astype(np.uint8)
        arrays[f"{name}_labels"] = labels[:, None].astype(np.uint8)
    np.savez_compressed(path, **(arrays | changes))


@pytest.mark.parametrize(
    ("depth", "num_slices", "places"),
    [(28, 1, [14]), (28, 4, [3, 10, 17, 24]), (6, 6, [0, 1, 2, 3, 4, 5]), (7, 2, [1, 5]), (64, 3, [10, 32, 53])],
)
def test_evenly_spaced(depth: int, num_slices: int, places: list[int]) -> None:
    assert evenly_spaced(depth, num_slices).tolist() == places


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("side", "suffix"), [(28, ""), (64, "_64")])
def test_volumes_are_read_as_slices_with_their_own_split(tmp_path: Path, side: int, suffix: str) -> None:
    path = tmp_path / f"adrenalmnist3d{suffix}.npz"
    write_volumes(path, side)
    data = load_set("medmnist:adrenalmnist3d", root=str(tmp_path), image_size=side, slices=3)
    assert (len(data.train), len(data.val), len(data.test)) == tuple(COUNTS.values())
    assert (data.num_slices, data.unit) == (3, "volumes")
    with np.load(path) as arrays:
        volumes = np.concatenate([arrays[f"{name}_images"] for name in COUNTS])
        labels = np.concatenate([arrays[f"{name}_labels"] for name in COUNTS])[:, 0]
    chosen = volumes[:, evenly_spaced(side, 3)]
    np.testing.assert_array_equal(data.images.numpy(), np.stack([chosen] * 3, 2))
    np.testing.assert_array_equal(data.labels.numpy(), labels)
    assert data.class_names == tuple(medmnist.INFO["adrenalmnist3d"]["label"].values())


@pytest.mark.usefixtures("cache")
def test_slices_are_resized_one_by_one(tmp_path: Path) -> None:
    write_volumes(tmp_path / "adrenalmnist3d_64.npz", 64)
    data = load_set("medmnist:adrenalmnist3d", root=str(tmp_path), image_size=42, slices=2)
    with np.load(tmp_path / "adrenalmnist3d_64.npz") as arrays:
        second = Image.fromarray(arrays["val_images"][1][evenly_spaced(64, 2)[1]])
    np.testing.assert_array_equal(data.images[COUNTS["train"] + 1, 1, :1].numpy(), resized(second, 42, 42))


@pytest.mark.usefixtures("cache")
def test_another_number_of_slices_is_another_entry_of_the_cache(tmp_path: Path) -> None:
    write_volumes(tmp_path / "adrenalmnist3d.npz")
    shapes = [
        load_set("medmnist:adrenalmnist3d", root=str(tmp_path), slices=number).images.shape for number in (2, 5, 2)
    ]
    assert [shape[1] for shape in shapes] == [2, 5, 2]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"val_images": np.zeros((6, 28, 28), np.uint8)}, {}, r"val_images uint8\(6, 28, 28\) in a file of side 28"),
        ({"train_images": np.zeros((24, 28, 28, 3), np.uint8)}, {}, r"train_images uint8\(24, 28, 28, 3\)"),
        ({}, {"slices": 29}, r"data.slices: found 29; expected at most the 28 of a published volume"),
    ],
)
def test_a_file_without_such_volumes_is_refused(tmp_path: Path, changes: Any, words: Any, message: str) -> None:
    write_volumes(tmp_path / "adrenalmnist3d.npz", **changes)
    with pytest.raises(UserError, match=message):
        load_set("medmnist:adrenalmnist3d", root=str(tmp_path), **words)


@pytest.mark.usefixtures("cache")
def test_volumes_are_no_images_of_a_flat_set(tmp_path: Path) -> None:
    write_volumes(tmp_path / "breastmnist.npz")
    with pytest.raises(UserError, match=r"train_images uint8\(24, 28, 28, 28\) in a file of side 28"):
        load_set("medmnist:breastmnist", root=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        ("medmnist:bloodmnist", 8, "8 with name: medmnist:bloodmnist.*null: only volumes have slices"),
        ("digits", 1, "1 with name: digits.*null: only volumes have slices"),
        ("medmnist:organmnist3d", None, "null with name: medmnist:organmnist3d.*a number of slices"),
    ],
)
def test_slices_without_effect_are_refused(name: str, slices: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate({"name": name, "slices": slices})


def test_every_published_set_of_volumes_is_known() -> None:
    published = {flag for flag in medmnist.INFO if flag.endswith("3d")}
    assert {row.name.removeprefix("medmnist:") for row in DATA.values() if row.volumes == "needed"} == published
    assert DataConfig.model_validate({"name": "medmnist:organmnist3d"}).slices == 8
    assert DataConfig.model_validate({"name": "medmnist:bloodmnist"}).slices is None


@pytest.mark.usefixtures("cache")
def test_all_slices_of_a_volume_are_augmented_alike(tmp_path: Path) -> None:
    same = np.repeat(np.random.default_rng(1).integers(0, 256, (24, 1, 28, 28), np.uint8), 28, 1)
    write_volumes(tmp_path / "adrenalmnist3d.npz", train_images=same)
    words = {"name": "medmnist:adrenalmnist3d", "root": str(tmp_path), "slices": 4}
    data = load_set(**words)
    model, _ = build_models(make_config().model, 28, data.class_names, 0, torch.device("cpu"), data.num_slices)
    source = ImageSource(data, model, ("flip", "rotate90", "crop", "color"))
    draws = source.draw([0], np.ones((1, 1, 24), bool), 0, 1, "train")
    assert draws is not None
    fixed, _ = source.training_batch(torch.arange(24)[None], draws[:, 0])
    assert fixed.shape[:3] == (1, 24, 4)
    torch.testing.assert_close(fixed, fixed[:, :, :1].expand_as(fixed))
    assert not torch.allclose(fixed, source.plain_batch(torch.arange(24)[None]))


@pytest.mark.usefixtures("cache")
def test_volumes_of_the_same_pixels_are_found(tmp_path: Path) -> None:
    write_volumes(tmp_path / "adrenalmnist3d.npz")
    with np.load(tmp_path / "adrenalmnist3d.npz") as arrays:
        train = arrays["train_images"]
    test = np.random.default_rng(2).integers(0, 256, (8, 28, 28, 28), np.uint8)
    test[3] = np.rot90(train[5], 1, (1, 2))
    write_volumes(tmp_path / "adrenalmnist3d.npz", test_images=test)
    data = load_set("medmnist:adrenalmnist3d", root=str(tmp_path))
    assert len(set(same_pictures(data.images.numpy()).tolist())) == sum(COUNTS.values()) - 1
    ((name, text, _),) = overlaps(data)
    assert name == "same pixels"
    assert "1 of 8 test images have one in train" in text


@pytest.mark.usefixtures("cache")
@pytest.mark.skipif(REAL is None, reason="no shared/realdata/medmnist_adrenal beside the checkout")
def test_the_published_adrenal_glands() -> None:
    assert REAL is not None
    data = load_set("medmnist:adrenalmnist3d", root=str(REAL.parent), slices=7)
    assert data.class_names == ("normal", "hyperplasia")
    counts = {part: class_counts(data, part) for part in ("train", "val", "test")}
    assert counts == {"train": [929, 259], "val": [76, 22], "test": [229, 69]}
    assert data.remarks == ()
    with np.load(REAL) as arrays:
        first = arrays["train_images"][0][evenly_spaced(28, 7)]
    np.testing.assert_array_equal(data.images[0, :, 0].numpy(), first)
