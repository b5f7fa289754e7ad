"""The dermoscopic clients: PRR-FL's folders and tables, as the tests write them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedsim.build import build_simulation
from fedsim.comm.group import open_group
from fedsim.config.data import DataConfig
from fedsim.data import Dataset, load_dataset, partition_clients
from fedsim.data.augment import AUGMENTATIONS
from fedsim.errors import UserError
from tests.helpers import make_config, play

pytestmark = pytest.mark.usefixtures("cache")
CLIENTS = ("clientA", "clientB", "clientC", "clientD")
LABELS = {"train": (0, 0, 1, 2), "valid": (0, 1), "test": (2, 1, 0)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four clients of nine images whose red tells the client and whose green tells the row."""
    base = tmp_path / "release"
    for site, client in enumerate(CLIENTS):
        tables, folders = base / "csv_folder" / client, base / "data" / client
        tables.mkdir(parents=True)
        number = 0
        for part, labels in LABELS.items():
            lines = ["image_id,label,label_binary,lesion_id"]
            for label in labels:
                lines.append(f"ISIC_{number:07},{label},{int(label == 2)},HAM_{number}")
                write(folders, f"ISIC_{number:07}.png", (site * 10, number, 0))
                number += 1
            (tables / f"{part}_{client}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return base


def write(folder: Path, name: str, colour: tuple[int, int, int]) -> None:
    for side in (128, 256):
        (folder / f"img_resize{side}").mkdir(parents=True, exist_ok=True)
        shade = (colour[0], colour[1], side - 1)
        Image.new("RGB", (side, side), shade).save(folder / f"img_resize{side}" / name)


def load(root: Path, image_size: int = 16) -> Dataset:
    return load_dataset(
        DataConfig.model_validate({"name": "dermoscopic_clients", "root": str(root), "image_size": image_size})
    )


def test_tables_become_sites_with_their_own_split(root: Path) -> None:
    data = load(root)
    assert data.class_names == ("nevus", "benign keratosis", "melanoma")
    assert data.site_names == CLIENTS
    assert data.sites is not None
    assert data.images.shape == (36, 3, 16, 16)
    for site in range(4):
        own = data.sites == site
        for places, labels in ((data.train, (0, 0, 1, 2)), (data.val, (0, 1)), (data.test, (2, 1, 0))):
            mine = places[own[places]]
            assert tuple(data.labels[mine].tolist()) == labels
            assert set(data.images[mine][:, 0].flatten().tolist()) == {site * 10}
    assert data.images[data.test[0], 1, 0, 0] == 6, "the first test image is the seventh of client A"


@pytest.mark.parametrize(("image_size", "side"), [(64, 128), (128, 128), (129, 256), (300, 256)])
def test_the_smaller_images_are_taken_where_they_suffice(root: Path, image_size: int, side: int) -> None:
    assert load(root, image_size).images[0, 2, 0, 0] == side - 1


def test_what_a_mac_leaves_is_no_client(root: Path) -> None:
    (root / "csv_folder" / "__MACOSX").mkdir()
    (root / "csv_folder" / "._clientA").mkdir()
    data = load(root)
    assert data.site_names == CLIENTS
    assert data.files is not None
    assert data.files["files"] == 12 + 36


def test_clients_are_the_natural_partition(root: Path) -> None:
    data = load(root)
    config = make_config(clients={"count": 4, "partition": {"name": "sites"}}).clients
    assert [len(part) for part in partition_clients(data, config, 0)] == [4, 4, 4, 4]


def test_a_round_of_prrfl_with_the_augmentations_of_the_release(root: Path) -> None:
    """The four clients train the slim VGG16; augmented images teach something else than plain ones."""
    changes = ["vertical_flip", "flip", "brightness", "blur_or_noise", "shift_scale_rotate"]
    ends = []
    for augment in (changes, []):
        config = make_config(
            algorithm={"name": "prrfl"},
            model={"name": "fedsim:vgg16_slim", "weights": "random", "train": "all"},
            data={"name": "dermoscopic_clients", "root": str(root), "image_size": 32, "augment": augment},
            clients={"count": 4, "per_block": 2, "partition": {"name": "sites"}},
            train={"lr": 0.01, "momentum": 0.0, "batch_size": 4, "epochs": 2},
        )
        sim = build_simulation(config, open_group())
        assert [own.tolist() for own in sim.trainer.own.held_out["val"]] == [[4, 5], [13, 14], [22, 23], [31, 32]]
        play(sim, 1)
        ends.append(sim.store.read(2)["own/net.fc1.linear.weight"])
    assert all(end.isfinite().all() for end in ends)
    assert not torch.equal(*ends)


def edit(path: str, old: str, new: str) -> Any:
    def change(root: Path) -> None:
        file = root / path
        assert old in file.read_text(encoding="utf-8")
        file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")

    return change


TRAIN_B = "csv_folder/clientB/train_clientB.csv"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "csv_folder").rename(root / "csv"), r"release: found no client in csv_folder; .*img_res"),
        (lambda root: (root / TRAIN_B).unlink(), r"train_clientB.csv: found .*No such file"),
        (edit(TRAIN_B, ",1,", ",3,"), r"train_clientB.csv line 4: found image_id 'ISIC_0000002' with label '3'"),
        (edit(TRAIN_B, "image_id", "image"), r"train_clientB.csv line 2: found image_id None with label '0'"),
        (edit(TRAIN_B, "ISIC_0000002", "../ISIC_0000002"), r"line 4: found image_id '../ISIC"),
        (edit(TRAIN_B, "ISIC_0000002", "ISIC_0000001"), r"ISIC_0000001.png: found an image that two rows name"),
        (edit(TRAIN_B, "ISIC_0000002", "x" * 5000), r"xxx.png: found no such file; expected an image"),
        (edit(TRAIN_B, "label_binary", "label"), r"train_clientB.csv: found several columns label"),
        (edit(TRAIN_B, "ISIC_0000002", "ISIC_0000077"), r"ISIC_0000077.png: found no such file; expected an image"),
        (lambda root: (root / TRAIN_B).write_text("image_id,label\n"), r"train_clientB.csv: found no row"),
        (
            lambda root: (root / TRAIN_B).write_bytes(b"image_id,label\n\xff\xfe,0\n"),
            r"train_clientB.csv: found .*utf-8",
        ),
    ],
)
def test_a_spoilt_copy_is_one_line(root: Path, spoil: Any, message: str) -> None:
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_the_config_knows_its_words() -> None:
    with pytest.raises(ValueError, match="root"):
        DataConfig.model_validate({"name": "dermoscopic_clients"})
    words = DataConfig.model_validate({"name": "digits", "augment": list(AUGMENTATIONS)})
    assert list(words.augment) == list(AUGMENTATIONS)
    assert np.array_equal(np.argsort([part.start for _, part in AUGMENTATIONS.values()]), range(len(AUGMENTATIONS)))
