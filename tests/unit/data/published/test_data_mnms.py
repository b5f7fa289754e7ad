"""M&Ms in the folders of the challenge, films written by nibabel: slices, hospitals, vendors, and what is refused."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fedsim.data import Dataset, partition_clients
from fedsim.errors import UserError
from tests.helpers import load_set, make_config

pytestmark = pytest.mark.usefixtures("cache")
HEADER = ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"
TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
#: Hospital, its scanners' vendor, and the folder where its patients lie.
HOSPITALS = (("1", "A", "Training/Labeled"), ("2", "B", "Training/Labeled"), ("5", "D", "Testing"))
PER_HOSPITAL, NUM_SLICES, MOMENTS = 4, 5, (0, 3)
#: As oblique as short-axis stacks are: the slices' own axis is nearest to the body's left-to-right.
OBLIQUE = np.array([[0.1, 0.6, -6.0, 3], [1.2, 0.3, 1.0, -4], [0.4, -1.1, -5.0, 9], [0, 0, 0, 1]])


def write(path: Path, voxels: np.ndarray, affine: np.ndarray = OBLIQUE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def film_of(patient: int) -> np.ndarray:
    """12 columns, 10 rows, 5 slices, 6 moments; the value tells patient, slice and moment, and one corner is far
    brighter."""
    film = np.zeros((12, 10, NUM_SLICES, 6), np.int16)
    film[:] = 10 * patient + np.arange(NUM_SLICES)[:, None] + 100 * np.arange(6)
    film[0, 0] = 3000
    return film


def mask_of() -> np.ndarray:
    """At both phases, on all slices but the first: the left ventricle within the myocardium, and the right one."""
    mask = np.zeros((12, 10, NUM_SLICES, 6), np.uint8)
    for moment in MOMENTS:
        mask[2:8, 2:8, 1:, moment] = 2
        mask[4:6, 4:6, 1:, moment] = 1
        mask[8:11, 2:4, 1:, moment] = 3
    return mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = tmp_path / "OpenDataset"
    rows = [HEADER]
    for place, (centre, vendor, folder) in enumerate(HOSPITALS):
        for patient in range(PER_HOSPITAL):
            code = f"{'ABC'[place]}{patient}S9V9"
            name = base / folder / code
            write(name / f"{code}_sa.nii.gz", film_of(place * PER_HOSPITAL + patient))
            write(name / f"{code}_sa_gt.nii.gz", mask_of())
            rows.append(f"{len(rows) - 1},{code},Vendor {vendor},{vendor},{centre},0,3,{40 + patient},NOR,F,170,60")
    write(base / "Training/Unlabeled/K0S9V9/K0S9V9_sa.nii.gz", film_of(0))
    rows.append(f"{len(rows) - 1},K0S9V9,GE,C,4,0,0,50,DCM,M,180,80")
    (base / TABLE).write_text("\n".join(rows) + "\n")
    return base


def load(root: Path, image_size: int = 60, **changes: Any) -> Dataset:
    words = {"image_size": image_size, "fractions": {"val": 0.25, "test": 0.25}, **changes}
    return load_set("mnms", root=str(root), **words)  # type: ignore[no-any-return]  # helpers say Any


def test_an_image_is_a_slice_at_one_phase_as_it_is_stored(root: Path) -> None:
    data = load(root)
    assert data.images.shape == (12 * 2 * 4, 3, 60, 60)
    assert data.class_names == ("background", "left ventricle", "myocardium", "right ventricle")
    assert data.masks is not None
    place = 0
    for patient in range(12):
        for moment in MOMENTS:
            film = film_of(patient)[..., moment].astype(float)
            low, high = film.min(), np.quantile(film, 0.99)
            grey = ((film.clip(max=high) - low) / (high - low) * 255).astype(np.uint8)
            for z in range(1, NUM_SLICES):
                assert data.images[place, 0, 30, 30] == grey[6, 5, z]
                mask = mask_of()[:, :, z, moment].T.repeat(6, 0).repeat(5, 1)
                assert np.array_equal(data.masks[place].numpy(), mask)
                place += 1
    assert set(data.labels.tolist()) == {2}, "the myocardium has most pixels"
    assert data.file_names[0] == "Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz"


def test_hospitals_are_sites_and_whole_patients_are_drawn_at_each(root: Path) -> None:
    data = load(root)
    assert data.site_names == ("centre 1", "centre 2", "centre 5")
    assert data.groups is not None
    assert data.sites is not None
    assert len(set(data.groups.tolist())) == 12
    for part, patients in ((data.train, 2), (data.val, 1), (data.test, 1)):
        for site in range(3):
            own = data.groups[part][data.sites[part] == site]
            assert len(set(own.tolist())) == patients
    assert "1 patients without masks are passed over" in data.remarks


def test_the_vendors_are_clients_too(root: Path) -> None:
    config = make_config(clients={"count": 3, "partition": {"name": "column"}})
    data = load(root)
    parts = partition_clients(data, config.clients, 0)
    assert data.owner_names == ("vendor A", "vendor B", "vendor D")
    assert data.owners is not None
    assert [set(data.owners[part].tolist()) for part in parts] == [{0}, {1}, {2}]


def rename_column(root: Path) -> None:
    table = root / TABLE
    table.write_text(table.read_text().replace("External code", "Code"))


def change_row(old: str, new: str) -> Any:
    def change(root: Path) -> None:
        table = root / TABLE
        table.write_text(table.read_text().replace(old, new, 1))

    return change


FILM, MASK = "Testing/C0S9V9/C0S9V9_sa.nii.gz", "Testing/C0S9V9/C0S9V9_sa_gt.nii.gz"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / TABLE).unlink(), "found 0 tables with a column External code; expected the table of M&M"),
        (rename_column, "found 0 tables with a column External code"),
        (lambda root: (root / MASK).unlink(), r"C0S9V9_sa.nii.gz: found no mask beside it; expected C0S9V9_sa_gt.nii"),
        (lambda root: write(root / FILM, film_of(0)[..., 0]), r"found voxels \(12, 10, 5\); expected four axes"),
        (lambda root: write(root / MASK, mask_of()[:, :, :4]), "found a mask of 12 x 10 x 4 pixels; expected the size"),
        (lambda root: write(root / MASK, mask_of() + 2), "found the number 5; expected 0 background, 1 left ventricle"),
        (lambda root: write(root / MASK, mask_of() * 0), "found no left ventricle or myocardium or right ventricle"),
        (change_row(",D,5,0,3,", ",D,5,0,6,"), "found 6 moments, and number 6 in the table, counted from 0"),
        (change_row(",D,5,0,3,", ",D,5,,3,"), "csv row 9: found .*; expected External code, Vendor, Centre, ED, ES in"),
        (change_row("C0S9V9", "C7S9V9"), "csv: found no row of External code C0S9V9; expected one for .*C0S9V9_sa"),
        (change_row("C1S9V9", "C0S9V9"), "csv row 10: found External code C0S9V9 once more"),
        (lambda root: write(root / "Validation/C0S9V9_sa.nii.gz", film_of(0)), "found no mask beside it"),
    ],
)
def test_a_spoilt_set_is_one_line(root: Path, spoil: Any, message: str) -> None:
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)
