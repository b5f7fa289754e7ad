"""Partitions as the package biosilo writes them: manifest.json, and arrays for each client in both of its storages."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.config.data import DataConfig
from fedsim.data import Dataset, partition_clients
from fedsim.errors import UserError
from tests.helpers import load_set, make_config

pytestmark = pytest.mark.usefixtures("cache")
CLIENTS, SIZES = ("4", "13", "18"), {"train": 12, "test": 4}


def samples(client: int, split: str, channels: int) -> np.ndarray:
    """Pictures whose values tell client, sample and channel."""
    number = 50 * client + np.arange(SIZES[split]) + (20 if split == "test" else 0)
    return np.broadcast_to(
        number[:, None, None, None] + 0.25 * np.arange(channels)[:, None, None], (SIZES[split], channels, 8, 8)
    ).astype(np.float32)


def write(base: Path, storage: str = "memmap", channels: int = 4, **arrays: Any) -> Path:
    """A partition of three clients with two samples of each subject."""
    spec = {"name": "x", "shape": [channels, 8, 8], "dtype": "float32"}
    counts = [{"client_id": name, "metadata": {}, **SIZES} for name in CLIENTS]
    manifest = {
        "dataset": "BraTS", "partition_id": "s1_0123456789", "schema_version": 1, "settings": {"seed": 1},
        "num_clients": 3, "clients": counts, "splits": ["train", "test"], "input_spec": [spec],
        "target_spec": {"dtype": "int64", "shape": [], "num_classes": 2}, "storage": storage, "has_groups": True,
        "group_unit": "subject", "provenance": {"biosilo_version": "0.1.3", "git_sha": None},
    }  # fmt: skip
    for split, size in SIZES.items():
        (base / split).mkdir(parents=True)
        for client in range(3):
            own = {
                "x": samples(client, split, channels),
                "y": np.arange(size) % 2,
                "groups": np.array([f"{split}{number // 2}" for number in range(size)], "<U64"),
            }
            own |= {name: change(own[name]) for name, change in arrays.items()}
            if storage == "npz":
                named = {"x": own["x"], "__y__": own["y"], "__groups__": own["groups"]}
                np.savez_compressed(base / split / f"{client}.npz", **named)
            else:
                for name, array in own.items():
                    np.save(base / split / f"{client}_{name}.npy", array)
    (base / "manifest.json").write_text(json.dumps(manifest))
    return base


def load(root: Path, **changes: Any) -> Dataset:
    words = {"image_size": 8, "window": "99.9/200", **changes}
    return load_set("biosilo", root=str(root), **words)  # type: ignore[no-any-return]  # helpers say Any


@pytest.mark.parametrize("storage", ["memmap", "npz"])
def test_clients_are_sites_with_their_own_training_and_test(tmp_path: Path, storage: str) -> None:
    data = load(write(tmp_path / "set", storage))
    assert data.site_names == CLIENTS
    assert (data.class_names, data.drawn, data.num_slices) == (("0", "1"), ("val",), 4)
    assert data.images.shape == (48, 4, 3, 8, 8)
    assert data.sites is not None
    assert data.groups is not None
    assert [int((data.sites[data.test] == site).sum()) for site in range(3)] == [4, 4, 4]
    assert len(set(data.groups.tolist())) == 3 * (6 + 2)
    assert set(data.groups[data.val].tolist()).isdisjoint(data.groups[data.train].tolist())
    expected = np.concatenate([samples(client, split, 4)[..., 0, 0] for client in range(3) for split in SIZES])
    levels = np.rint(np.clip((expected - 99.9) / 200 + 0.5, 0, 1) * 255)
    assert np.array_equal(data.images[:, :, 0, 0, 0].numpy(), levels)
    parts = partition_clients(data, make_config(clients={"count": 3, "partition": {"name": "sites"}}).clients, 0)
    assert [set(data.sites[part].tolist()) for part in parts] == [{0}, {1}, {2}]


def test_three_channels_are_one_picture_and_8_bits_need_no_window(tmp_path: Path) -> None:
    root = write(tmp_path / "set", channels=3, x=lambda pictures: np.rint(pictures).astype(np.uint8))
    data = load(root, window=None)
    assert (data.images.shape, data.num_slices) == ((48, 3, 8, 8), None)
    assert data.images[:12, 0, 0, 0].tolist() == list(range(12))


@pytest.mark.parametrize(
    ("arrays", "words", "message"),
    [
        ({}, {"window": None}, "sample 0: found values of type float32; expected data.window"),
        ({"x": lambda x: x * np.nan}, {}, "sample 0: found values that are nan or infinite"),
        ({"x": lambda x: x[..., 0, 0]}, {}, r"0_x.npy: found float32 \(12, 4\); expected pictures \(N, C, H, W\)"),
        ({"x": lambda x: x[:-1]}, {}, "found arrays of 11 and 12 and 12 samples; expected a whole number for each"),
        ({"y": lambda y: y + 1}, {}, "found labels up to 2; expected 0 to 1, as the manifest has it"),
        ({"y": lambda y: y.astype(object)}, {}, "0_y.npy: found Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(
    tmp_path: Path, arrays: dict[str, Any], words: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(write(tmp_path / "set", **arrays), **words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"shape": [4, 8, 8]', '"shape": [5]', r"found samples of shape \[5\]; expected pictures"),
        ('"storage": "memmap"', '"storage": "zarr"', "found another storage"),
        ('"num_classes": 2', '"num_classes": 1', "found 1 classes; expected at least two"),
        ('"client_id": "13"', '"client_id": "4"', "clients of one name"),
        ('"clients"', '"people"', "manifest.json: found 'clients'; expected the folder that biosilo.generate returns"),
        ("{", "", "manifest.json: found"),
    ],
)
def test_another_manifest_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path / "set") / "manifest.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_manifest_and_idle_words(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"manifest.json: found no such file; expected the folder that biosilo.generate"
    ):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"fit: found 'crop' with name: biosilo"):
        DataConfig.model_validate({"name": "biosilo", "root": ".", "fit": "crop"})
