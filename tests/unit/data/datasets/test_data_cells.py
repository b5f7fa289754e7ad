"""The cell tiles: cut, scaled and split as their docstring says, found again in the files they come from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedsim.configure import load_config
from fedsim.data import Dataset, partition_clients
from fedsim.data.assets import fetch
from fedsim.data.masks import main_classes, resized_mask
from fedsim.errors import UserError
from tests.helpers import load_set, make_config


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_set("cells", image_size=64)  # type: ignore[no-any-return]  # helpers say Any


def page(folder: str, file: str, number: int) -> np.ndarray:
    with Image.open(fetch(folder) / file) as image:
        image.seek(number)
        return np.asarray(image, np.float64)


def scaled(pixels: np.ndarray) -> np.ndarray:
    low, high = np.percentile(pixels, [1, 99.8])
    return np.rint(((pixels - low) / (high - low)).clip(0, 1) * 255)


def test_sites_and_splits_have_the_tiles_that_were_counted(data: Dataset) -> None:
    assert data.site_names == ("HeLa", "bacteria", "CHO", "DSB2018")
    assert data.sites is not None
    assert np.bincount(data.sites).tolist() == [2433, 120, 2178, 52]
    counts = [np.bincount(data.sites[part]).tolist() for part in (data.train, data.val, data.test)]
    assert counts == [[1519, 53, 1363, 32], [380, 23, 330, 8], [534, 44, 485, 12]]


def test_every_tile_has_some_foreground(data: Dataset) -> None:
    assert data.masks is not None
    assert data.masks.dtype == torch.uint8
    assert data.masks.shape == (4783, 64, 64)
    assert data.masks.float().mean((1, 2)).min() >= 0.02
    assert torch.equal(data.labels, torch.ones(4783, dtype=torch.int64))


def test_the_last_four_frames_are_the_test(data: Dataset) -> None:
    """The first test tile of HeLa is the first of the 17th frame that has enough foreground."""
    grey, cells = (page("cell_movies", f"Fluo_Hela_02_{end}.tif", 16) for end in ("img", "ERR_SEG"))
    places = [(row, column) for row in range(0, 640 - 63, 64) for column in range(0, 1100 - 63, 64)]
    row, column = next((r, c) for r, c in places if (cells[r : r + 64, c : c + 64] > 0).sum() >= 82)
    window = slice(row, row + 64), slice(column, column + 64)
    first = data.test[0]
    assert data.masks is not None
    np.testing.assert_array_equal(data.images[first, 0], scaled(grey)[window])
    np.testing.assert_array_equal(data.masks[first], cells[window] > 0)


def test_tiles_of_two_splits_of_the_one_field_do_not_touch(data: Dataset) -> None:
    grey = scaled(page("dsb2018_nuclei", "img2d.tif", 0))
    places = {
        grey[r : r + 64, c : c + 64].tobytes(): (r // 64, c // 64) for r in range(0, 512, 64) for c in range(0, 512, 64)
    }
    assert data.sites is not None
    held = [
        np.array([places[data.images[i, 0].double().numpy().tobytes()] for i in part if data.sites[i] == 3])
        for part in (data.train, data.val, data.test)
    ]
    assert [len(part) for part in held] == [32, 8, 12]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(held[one][:, None] - held[other][None]).max(2).min() == 2


def test_planes_of_a_frame_share_their_scale(data: Dataset) -> None:
    """The first of CHO's tiles in the second plane is as dark as the scale of all five planes makes it."""
    planes = np.stack([page("cell_movies", "Fluo-N3DH-CHO_02_img.tif", number) for number in range(5)])
    tiles = scaled(planes)[1, :384, :512].reshape(6, 64, 8, 64).swapaxes(1, 2).reshape(48, -1)
    assert data.sites is not None
    found = data.images[np.flatnonzero(data.sites == 2)[:60], 0].flatten(1).double().numpy()
    assert sum(tile.tobytes() in {row.tobytes() for row in tiles} for tile in found) >= 20


def test_masks_are_resized_to_their_nearest_pixel(data: Dataset) -> None:
    small = load_set("cells", image_size=32)
    assert data.masks is not None
    assert small.images.shape == (4783, 3, 32, 32)
    assert torch.equal(small.masks, data.masks[:, 1::2, 1::2])


def test_few_images_still_come_from_every_site() -> None:
    for changes in ({"max_train": 10}, {"truncate_to_smallest": True}):
        few = load_set("cells", image_size=64, **changes)
        counts = np.bincount(few.sites[few.train], minlength=4)
        assert counts.min() > 0
        assert (counts.tolist() == [32] * 4) == ("truncate_to_smallest" in changes)


def test_too_few_images_name_the_site_that_got_none() -> None:
    few = load_set("cells", image_size=64, max_train=3)
    config = make_config(clients={"count": 4, "partition": {"name": "sites"}}).clients
    with pytest.raises(UserError, match=r"data cells, site DSB2018: found no training image; expected at least one"):
        partition_clients(few, config, 0)


def test_truncation_goes_with_the_sites_partition(tmp_path: Path) -> None:
    text = """
        {name: x, rounds: 1, train: {lr: 0.1, batch_size: 2}, clients: {count: 4, partition: {name: PART}},
        model: {name: fedsim:vgg16_slim, weights: random, train: all}, data: {name: cells, truncate_to_smallest: true}}
    """
    (tmp_path / "x.yaml").write_text(text.replace("PART", "sites"))
    assert load_config(tmp_path / "x.yaml").data.truncate_to_smallest
    (tmp_path / "x.yaml").write_text(text.replace("PART", "iid"))
    with pytest.raises(UserError, match=r"data.truncate_to_smallest: found true with clients.partition.name: iid"):
        load_config(tmp_path / "x.yaml")


def test_a_mask_keeps_its_classes_and_tells_the_main_one() -> None:
    mask = np.array([[0, 0, 2, 2], [0, 3, 2, 2]], np.uint8)
    assert resized_mask(mask, 8, 4).tolist() == mask.repeat(2, 0).repeat(2, 1).tolist()
    assert set(resized_mask(mask, 3, 3).ravel().tolist()) <= {0, 2, 3}
    assert main_classes(np.stack([mask, mask % 2, mask * 0]), 4).tolist() == [2, 1, 0]
