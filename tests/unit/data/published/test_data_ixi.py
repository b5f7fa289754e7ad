"""FLamby's Fed-IXI in the folders that it downloads, volumes written by nibabel, with and without its own split."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fedsim.data import Dataset
from fedsim.errors import UserError
from tests.helpers import load_set

pytestmark = pytest.mark.usefixtures("cache")
HOSPITALS = ("Guys", "HH", "IOP")
#: Numbers as in the published table.
NUMBERS = {"Guys": (2, 16, 17, 19), "HH": (12, 13, 14, 15), "IOP": (35, 230, 231, 232)}
TESTED = (2, 17, 12, 15, 231)


def write(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([4.0, 4.0, 5.0, 1.0])), path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = tmp_path / "IXI_sample"
    for hospital, numbers in NUMBERS.items():
        for number in numbers:
            name = f"IXI{number:03}-{hospital}-{number + 800:04}"
            voxels = np.full((8, 10, 6), number, np.float32)
            voxels[:2, 0] = 1000
            mask = np.zeros((8, 10, 6), np.uint8)
            mask[2:6, 3:8, 1:5] = 1
            write(base / name / "T1" / f"{name}-T1.nii.gz", voxels)
            write(base / name / "label" / f"{name}-label.nii.gz", mask)
    (base / "IXI.xls").write_bytes(b"demographics")
    return base


def load(root: Path, **changes: Any) -> Dataset:
    return load_set("flamby:ixi_tiny", root=str(root), image_size=40, **changes)  # type: ignore[no-any-return]  # helpers say Any


def test_hospitals_are_sites_and_slices_show_the_brain(root: Path) -> None:
    data = load(root, fractions={"val": 0.25, "test": 0.25})
    assert data.site_names == HOSPITALS
    assert (len(data.images), data.drawn) == (12 * 4, ("val", "test"))
    assert data.groups is not None
    assert data.masks is not None
    # Four of eight columns and five of ten rows.
    assert data.masks.sum((1, 2)).tolist() == [20 * 20] * 48
    parts = [set(data.groups[part].tolist()) for part in (data.train, data.val, data.test)]
    assert [len(part) for part in parts] == [6, 3, 3]


def test_flambys_own_table_says_who_is_tested(root: Path) -> None:
    rows = [f"{n},0,{'test' if n in TESTED else 'train'}" for own in NUMBERS.values() for n in own]
    (root / "metadata_tiny.csv").write_text("\n".join(["Patient ID,Manufacturer,Split", *rows, "662,0,train"]) + "\n")
    data = load(root, fractions={"val": 0.34})
    assert data.drawn == ("val",)
    assert sorted({int(data.file_names[place][3:6]) for place in data.test}) == sorted(TESTED)
    (root / "metadata_tiny.csv").write_text("\n".join(["Patient ID,Manufacturer,Split", *rows[1:]]) + "\n")
    with pytest.raises(UserError, match=r"metadata_tiny.csv: found no Patient ID 2; expected a row for IXI002-Guys-"):
        load(root)
    (root / "metadata_tiny.csv").write_text("\n".join(["Patient ID,Manufacturer,Split", *rows, "9,0,held out"]) + "\n")
    with pytest.raises(UserError, match=r"metadata_tiny.csv row 13: found .*; expected a number, and one of train"):
        load(root)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "label").rename(folder / "mask"), r"IXI002-Guys-0802/label: found 0 volumes"),
        (lambda folder: write(folder / "T1/more.nii.gz", np.zeros((8, 10, 6))), r"T1: found 2 volumes; expected one: "),
        (
            lambda folder: write(folder / "label/IXI002-Guys-0802-label.nii.gz", np.full((8, 10, 6), 2, np.uint8)),
            "number 2",
        ),
    ],
)
def test_a_spoilt_subject_is_one_line(root: Path, spoil: Any, message: str) -> None:
    spoil(root / "IXI002-Guys-0802")
    with pytest.raises(UserError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_a_folder_without_subjects_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found no folder of a subject; expected <root>/IXI002-Guys-0828/T1"):
        load(tmp_path)
