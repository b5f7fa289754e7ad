"""Prostate volumes in the folders of SAML, written by nibabel, with and without HarmoFL's split files."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from fedsim.data import Dataset, partition_clients
from fedsim.errors import UserError
from tests.helpers import load_set, make_config

pytestmark = pytest.mark.usefixtures("cache")
SITES = ("BIDMC", "ISBI_1.5")
NUM_VOLUMES, NUM_SLICES, KEPT = 5, 8, 5  # of 8 slices, 1 to 6 have two neighbours, and 2 to 7 show prostate


def write(path: Path, voxels: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


def voxels_of(site: int, case: int) -> np.ndarray:
    """12 columns, 10 rows, 8 slices; the value tells site, case and slice, and one corner is far brighter."""
    voxels = np.zeros((12, 10, NUM_SLICES), np.int16)
    voxels[:] = 100 * site + 10 * case + np.arange(NUM_SLICES)
    voxels[0, 0] = 3000
    return voxels


def mask_of() -> np.ndarray:
    """Prostate in columns 3 to 8 and rows 2 to 4, of the two zones 1 and 2, from slice 2 on."""
    mask = np.zeros((12, 10, NUM_SLICES), np.uint8)
    mask[3:6, 2:5, 2:], mask[6:9, 2:5, 2:] = 1, 2
    return mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = tmp_path / "prostate"
    for site, name in enumerate(SITES):
        (base / name).mkdir(parents=True)
        for case in range(NUM_VOLUMES):
            write(base / name / f"Case{case:02}.nii.gz", voxels_of(site, case))
            write(base / name / f"Case{case:02}_{'Ss'[site]}egmentation.nii.gz", mask_of())
    return base


def load(root: Path, image_size: int = 30, **changes: Any) -> Dataset:
    return load_set("prostate", root=str(root), image_size=image_size, **changes)  # type: ignore[no-any-return]  # helpers say Any


def test_an_image_is_a_slice_with_its_neighbours(root: Path) -> None:
    data = load(root)
    num_images = len(SITES) * NUM_VOLUMES * KEPT
    assert data.site_names == SITES
    assert data.images.shape == (num_images, 3, 30, 30)
    for site in range(2):
        for case in range(NUM_VOLUMES):
            voxels = voxels_of(site, case).astype(float)
            low, high = voxels.min(), np.quantile(voxels, 0.99)
            grey = ((np.minimum(voxels, high) - low) / (high - low) * 255).astype(np.uint8)
            for number, z in enumerate(range(2, 7)):
                image = data.images[(site * NUM_VOLUMES + case) * KEPT + number]
                assert image[:, 20, 20].tolist() == grey[6, 6, z - 1 : z + 2].tolist()
                assert image[:, 0, 0].tolist() == [255] * 3


def test_masks_have_rows_and_columns_as_the_images_and_one_class(root: Path) -> None:
    data = load(root)
    want = torch.zeros(30, 30, dtype=torch.uint8)
    want[6:15, 7:22] = 1  # rows 2 to 4 of 10; columns 3 to 8 of 12, 2.5 pixels each
    assert data.masks is not None
    found = data.masks[0]
    assert torch.equal(found[:, 8:22], want[:, 8:22])
    assert found[:, :7].max() == found[:, 23:].max() == 0
    assert (data.masks == found).all()
    assert data.labels.unique().tolist() == [1]
    assert data.class_names == ("background", "prostate")


def test_without_split_files_whole_patients_are_drawn_at_each_site(root: Path) -> None:
    data = load(root)
    assert data.groups is not None
    assert data.sites is not None
    held = [set(data.groups[part].tolist()) for part in (data.train, data.val, data.test)]
    assert sum(map(len, held)) == len(held[0] | held[1] | held[2]) == 10
    for part in (data.train, data.val, data.test):
        assert set(data.sites[part].tolist()) == {0, 1}


def write_split(root: Path) -> np.ndarray:
    """HarmoFL's files: masks and images listed backwards, slices shuffled. Returns the shuffled order."""
    order = np.random.default_rng(3).permutation(NUM_VOLUMES * KEPT)
    for site, name in enumerate(SITES):
        cases = [f"Case{case:02}" for case in range(NUM_VOLUMES)]
        names = [f"{case}{end}.nii.gz" for case in reversed(cases) for end in ("", f"_{'Ss'[site]}egmentation")]
        np.save(root / f"{name}-dir.npy", np.array(names))
        np.save(root / f"{name}-index.npy", order)
    return order


def test_split_files_decide_as_released(root: Path) -> None:
    order = write_split(root)
    data = load(root)
    assert data.groups is None
    assert (data.images[:, 1, 20, 20] == load(root).images[:, 1, 20, 20]).all()
    voxels = voxels_of(0, NUM_VOLUMES - 1).astype(float)
    low, high = voxels.min(), np.quantile(voxels, 0.99)
    assert data.images[0, 0, 20, 20] == int((voxels[6, 6, 1] - low) / (high - low) * 255), "the last case is first"
    for site in range(2):
        offset = site * NUM_VOLUMES * KEPT
        own = [part[(part >= offset) & (part < offset + 25)] - offset for part in (data.train, data.val, data.test)]
        for found, expected in zip(own, (order[:16], order[16:20], order[20:]), strict=True):
            np.testing.assert_array_equal(found, np.sort(expected))


def test_sites_train_as_many_slices_as_the_smallest(root: Path) -> None:
    for case in (3, 4):
        for path in (root / "BIDMC").glob(f"Case0{case}*"):
            path.unlink()
    config = make_config(clients={"count": 2, "partition": {"name": "sites"}}).clients
    whole, cut = (partition_clients(load(root, truncate_to_smallest=value), config, 0) for value in (False, True))
    assert len(whole[0]) < len(whole[1])
    assert len(cut[0]) == len(cut[1]) == len(whole[0])


def spoil_voxels(path: str, change: Any) -> Any:
    return lambda root: write(root / path, change(nibabel.load(root / path).get_fdata().astype(np.float32)))


def with_nan(voxels: np.ndarray) -> np.ndarray:
    voxels[1, 2, 3:5] = np.nan
    return voxels


def break_off(path: str) -> Any:
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[:-40])


def save(path: str, array: np.ndarray) -> Any:
    def change(root: Path) -> None:
        write_split(root)
        np.save(root / path, array)

    return change


def only_one_split_file(root: Path) -> None:
    write_split(root)
    (root / "BIDMC-index.npy").unlink()


IMAGE, MASK = "BIDMC/Case01.nii.gz", "BIDMC/Case01_Segmentation.nii.gz"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            spoil_voxels(IMAGE, with_nan),
            r"Case01.nii.gz: found 2 of 960 voxels nan or infinite; expected finite voxels",
        ),
        (spoil_voxels(MASK, with_nan), r"Case01_Segmentation.nii.gz: found 2 of 960 voxels nan"),
        (
            lambda root: (root / MASK).unlink(),
            r"BIDMC/Case01.nii.gz: found no mask of that name; expected .*Case00_seg",
        ),
        (
            lambda root: (root / IMAGE).unlink(),
            r"BIDMC/Case01.nii.gz: found no such file; expected <root>/<site>/Case00",
        ),
        (
            spoil_voxels(MASK, lambda v: v[:, :9]),
            r"Segmentation.nii.gz: found a mask of 12 x 9 x 8 pixels; .*12 x 10 x 8",
        ),
        (spoil_voxels(MASK, lambda v: v * 0), r"Segmentation.nii.gz: found no prostate between the first and the last"),
        (spoil_voxels(IMAGE, lambda v: v * 0 + 7), r"Case01.nii.gz: found the value 7 in 99 % of the voxels"),
        (
            spoil_voxels(IMAGE, lambda v: v[:, :, None]),
            r"Case01.nii.gz: found voxels \(12, 10, 1, 8\); expected three axes",
        ),
        (break_off(IMAGE), r"Case01.nii.gz: found an unreadable volume"),
        (lambda root: (root / IMAGE).write_bytes(b"no"), r"Case01.nii.gz: found an unreadable volume"),
        (lambda root: [path.unlink() for path in (root / "BIDMC").iterdir()], r"BIDMC: found no training image"),
        (only_one_split_file, r"BIDMC-index.npy: found no such file; expected .* for every site, or for none"),
        (save("BIDMC-index.npy", np.arange(24)), r"index.npy: found 24 numbers; expected each of the site's 25 slices"),
        (save("BIDMC-index.npy", np.ones(25)), r"index.npy: found an array float64\(25,\)"),
        (save("BIDMC-dir.npy", np.array([["Case00.nii.gz"]])), r"dir.npy: found an array <U13\(1, 1\)"),
        (save("BIDMC-dir.npy", np.array(["Case00"], object)), r"dir.npy: found .*allow_pickle=False"),
        (save("BIDMC-dir.npy", np.array(["Case09_segmentation.nii.gz"])), r"Case09.nii.gz: found no such file"),
    ],
)
def test_a_spoilt_set_is_one_line(root: Path, spoil: Any, message: str) -> None:
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)
