"""launch.py import: what is made of a folder, who is written by which name, and what is refused."""

import csv
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

import launch
from fedsim.data.clinic.nifti import read_nifti
from fedsim.errors import UserError
from tests.helpers import load_set
from tests.unit.data.clinic.clinic_folder import bring_in, manifest, pixels, write_folder
from tests.unit.data.clinic.dicom_files import PATIENT, save_dicom


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "clinic")


def write_labels(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_every_format_becomes_pictures_and_rows(folder: Path, tmp_path: Path) -> None:
    said = bring_in(folder, tmp_path / "set", slices=4)
    assert "33 rows of 18 files" in said
    assert "2 passed over" in said
    rows = manifest(tmp_path / "set")
    assert [row["source"] for row in rows] == sorted(row["source"] for row in rows)
    by_source = {row["source"]: row for row in rows}
    for row in rows:
        assert hashlib.sha256((tmp_path / "set" / row["path"]).read_bytes()).hexdigest() == row["sha256"]
        assert hashlib.sha256((folder / row["source"]).read_bytes()).hexdigest() == row["source_sha256"]
        assert pixels(tmp_path / "set", row).shape[:2] == (int(row["height"]), int(row["width"]))
        assert row["bits"] == "8"
    assert by_source["ct/0.dcm"]["window"] == "2048/4096 LINEAR"
    assert by_source["bare/IM0000"]["path"] == "images/bare/IM0000.png"
    assert (by_source["bare/IM0000"]["spacing_y"], by_source["bare/IM0000"]["spacing_x"]) == ("0.5", "0.25")
    assert [row["frame"] for row in rows if row["source"] == "mr/0.nii.gz"] == ["1", "3", "5", "7"]
    assert [row["frame"] for row in rows if row["source"] == "cine/0.dcm"] == ["0", "1", "2"]
    assert by_source["mr/0.nii.gz"]["spacing_z"] == "3"
    deep = np.asarray(Image.open(folder / "deep/0.png"), np.float64)
    right = np.rint((deep - deep.min()) / (deep.max() - deep.min()) * 255)
    assert np.abs(pixels(tmp_path / "set", by_source["deep/0.png"]) - right).max() <= 1
    assert np.array_equal(pixels(tmp_path / "set", by_source["deep/0.tif"]), Image.open(folder / "deep/0.tif"))


def test_16_bits_keep_the_steps_of_12(folder: Path, tmp_path: Path) -> None:
    bring_in(folder, tmp_path / "set", bits=16, window="0/8192")
    row = next(row for row in manifest(tmp_path / "set") if row["source"] == "deep/0.png")
    deep = np.asarray(Image.open(folder / "deep/0.png"), np.float64)
    assert row["bits"] == "16"
    assert np.abs(pixels(tmp_path / "set", row) - ((deep + 4096) / 8192 * 65535)).max() <= 1


def test_slabs_have_the_slices_beside_them(folder: Path, tmp_path: Path) -> None:
    bring_in(folder, tmp_path / "set", volumes="slabs", slices=3, window="450/900")
    row, _, last = (row for row in manifest(tmp_path / "set") if row["source"] == "mr/1.nii.gz")
    scan = read_nifti(folder / "mr/1.nii.gz")
    right = [scan.frame(place).values / 900 * 255 for place in (0, 1, 2)]
    assert np.abs(pixels(tmp_path / "set", row) - np.stack(right, axis=2)).max() < 0.501
    assert last["frame"] == "7"


def test_whole_volumes(folder: Path, tmp_path: Path) -> None:
    bring_in(folder, tmp_path / "set", volumes="whole", window="450/900")
    row = next(row for row in manifest(tmp_path / "set") if row["source"] == "mr/1.nii.gz")
    volume = pixels(tmp_path / "set", row)
    scan = read_nifti(folder / "mr/1.nii.gz")
    right = np.stack([scan.frame(place).values for place in range(scan.num_frames)]) / 900 * 255
    assert (row["depth"], row["height"], row["width"]) == ("9", "12", "10")
    assert np.abs(volume - right).max() < 0.501
    bring_in(folder, tmp_path / "cube", volumes="whole", size=8, window="450/900")
    row = next(row for row in manifest(tmp_path / "cube") if row["source"] == "mr/1.nii.gz")
    cube = pixels(tmp_path / "cube", row)
    assert cube.shape == (8, 8, 8)
    assert abs(cube.mean() - volume.mean()) < 3
    assert float(row["spacing_z"]) == pytest.approx(3 * 9 / 8, rel=1e-5)


def test_pictures_shrink_by_their_shorter_side_and_never_grow(folder: Path, tmp_path: Path) -> None:
    bring_in(folder, tmp_path / "set", size=9)
    sizes = {row["source"]: (row["height"], row["width"]) for row in manifest(tmp_path / "set")}
    assert sizes["ct/0.dcm"] == sizes["deep/0.tif"] == ("9", "12")
    row = next(row for row in manifest(tmp_path / "set") if row["source"] == "bare/IM0000")
    assert float(row["spacing_y"]) == pytest.approx(0.5 * 12 / 9, rel=1e-5)
    bring_in(folder, tmp_path / "large", size=500)
    assert next(row for row in manifest(tmp_path / "large"))["height"] == "12"


def test_nobody_is_named_and_the_salt_lies_beside(folder: Path, tmp_path: Path) -> None:
    bring_in(folder, tmp_path / "set")
    rows = {row["source"]: row for row in manifest(tmp_path / "set")}
    written = b"".join(path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file())
    secrets = [PATIENT["PatientName"], PATIENT["PatientBirthDate"], PATIENT["StudyDate"], "P0", "North", "1.2.3.4"]
    assert not [secret for secret in secrets if secret.encode() in written]
    assert rows["ct/0.dcm"]["patient"] == rows["bare/IM0001"]["patient"] != rows["ct/2.dcm"]["patient"]
    assert rows["ct/0.dcm"]["site"] == rows["ct/2.dcm"]["site"] != rows["ct/1.dcm"]["site"]
    salt = tmp_path / "set.salt"
    assert salt.stat().st_mode & 0o777 == 0o600
    assert salt.read_bytes().strip() not in written
    bring_in(folder, tmp_path / "same", salt=salt)
    bring_in(folder, tmp_path / "other")
    assert (tmp_path / "same" / "manifest.csv").read_bytes() == (tmp_path / "set" / "manifest.csv").read_bytes()
    assert manifest(tmp_path / "other")[0]["patient"] != manifest(tmp_path / "set")[0]["patient"]


def test_slices_of_nobody_belong_together_by_their_study_or_series(tmp_path: Path) -> None:
    nobody = {"PatientID": "", "StudyInstanceUID": ""}
    for name, words in {"a": {}, "b": {}, "c": {"SeriesInstanceUID": "1.2.9"}}.items():
        tags = {"SeriesInstanceUID": "1.2.8", **nobody, **words}
        save_dicom(tmp_path / "clinic" / f"{name}.dcm", np.arange(16, dtype=np.uint8).reshape(4, 4), 8, **tags)
    bring_in(tmp_path / "clinic", tmp_path / "set")
    patients = [row["patient"] for row in manifest(tmp_path / "set")]
    assert patients[0] == patients[1] != patients[2]
    assert "" not in patients


def test_slices_of_one_volume_belong_together(folder: Path, tmp_path: Path) -> None:
    bring_in(folder, tmp_path / "set")
    patients: dict[str, set[str]] = {}
    for row in manifest(tmp_path / "set"):
        patients.setdefault(row["source"], set()).add(row["patient"])
    volumes = [patients[f"mr/{number}.nii.gz"] for number in range(3)]
    assert all(len(one) == 1 and "" not in one for one in volumes)
    assert len(set().union(*volumes)) == 3
    assert patients["deep/0.png"] == {""}


def test_a_table_says_which_files_and_what_they_are(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"path": "ct/0.dcm", "label": "clear", "site": "east", "patient": "", "split": "train"},
        {"path": "IM0001", "label": "nodule", "site": "", "patient": "Jane", "split": "test"},
        {"path": "mr/2.nii.gz", "label": "clear", "site": "west", "patient": " Jane ", "split": "test"},
    ]
    labels = write_labels(tmp_path / "labels.csv", rows)
    said = bring_in(folder, tmp_path / "set", labels=labels, slices=2)
    assert "4 rows of 3 files" in said
    found = manifest(tmp_path / "set")
    assert [(row["label"], row["split"]) for row in found] == [
        ("nodule", "test"),
        ("clear", "train"),
        *[("clear", "test")] * 2,
    ]
    assert found[0]["patient"] == found[3]["patient"] != found[1]["patient"] != ""
    assert "Jane" not in (tmp_path / "set" / "manifest.csv").read_text()
    assert found[1]["site"] == "east"
    assert len(found[0]["site"]) == 16
    rows[0]["label"] = "nodule"
    write_labels(labels, rows)
    bring_in(folder, tmp_path / "set", labels=labels, slices=2)
    assert manifest(tmp_path / "set")[1]["label"] == "nodule"


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([{"path": "0", "label": "a"}], "row 1 '0': 5 files"),
        ([{"path": "none.dcm", "label": "a"}, {"path": "ct/0.dcm", "label": "b"}], "1 of 2 rows: found row 1"),
        ([{"path": "ct/0.dcm", "label": "a"}, {"path": "ct/0.dcm", "label": "b"}], "a file of another row"),
        ([{"file": "ct/0.dcm"}], "no column path"),
        ([{"path": "ct/0.dcm", "window": "a"}], "column window"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(
    rows: list[dict[str, str]], found: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=found):
        bring_in(folder, tmp_path / "set", labels=write_labels(tmp_path / "labels.csv", rows))
    assert not (tmp_path / "set").exists()


def test_a_row_of_labels_with_a_cell_too_many_is_one_line(folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\nct/0.dcm,clear\nct/1.dcm,nodule, calcified\n")
    with pytest.raises(UserError, match=r"labels\.csv row 2: found 3 cells; expected 2; quotation marks around a cell"):
        bring_in(folder, tmp_path / "set", labels=labels)
    assert not (tmp_path / "set").exists()


def test_all_bad_files_are_listed_at_once(folder: Path, tmp_path: Path) -> None:
    for number in range(7):
        (folder / f"ct/bad{number}.dcm").write_bytes(b"no DICOM")
    (folder / "deep/3.png").write_bytes((folder / "deep/0.png").read_bytes()[:100])
    with pytest.raises(UserError, match=r"8 of 26 files.*ct/bad0\.dcm: .*and 3 more; expected .*--skip-bad"):
        bring_in(folder, tmp_path / "set")
    assert not (tmp_path / "set" / "manifest.csv").exists()
    listed = list(csv.DictReader((tmp_path / "set" / "bad_files.csv").open(newline="")))
    assert [row["source"] for row in listed] == [*(f"ct/bad{number}.dcm" for number in range(7)), "deep/3.png"]
    assert "8 files skipped" in bring_in(folder, tmp_path / "set", skip_bad=True)
    assert {row["source"] for row in manifest(tmp_path / "set")}.isdisjoint(row["source"] for row in listed)
    for row in listed:
        (folder / row["source"]).unlink()
    bring_in(folder, tmp_path / "set")
    assert not (tmp_path / "set" / "bad_files.csv").exists()


@pytest.mark.parametrize(
    "change", [{"window": "lung"}, {"bits": 16}, {"size": 10}, {"slices": 2}, {"volumes": "slabs"}]
)
def test_a_set_that_was_made_otherwise_is_refused(change: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    bring_in(folder, tmp_path / "set")
    before = (tmp_path / "set" / "manifest.csv").read_bytes()
    with pytest.raises(UserError, match=f"--{next(iter(change))}"):
        bring_in(folder, tmp_path / "set", **change)
    assert (tmp_path / "set" / "manifest.csv").read_bytes() == before


def test_places_that_are_no_place_for_a_set(folder: Path, tmp_path: Path) -> None:
    for out, found in ((folder / "set", "a place in"), (tmp_path, "something else")):
        with pytest.raises(UserError, match=found):
            bring_in(folder, out)
    with pytest.raises(UserError, match="no folder"):
        bring_in(tmp_path / "none", tmp_path / "set")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file that can be imported"):
        bring_in(tmp_path / "empty", tmp_path / "set")
    bring_in(folder, tmp_path / "set")
    (tmp_path / "set.salt").unlink()
    with pytest.raises(UserError, match=r"set\.salt"):
        bring_in(folder, tmp_path / "set")
    (tmp_path / "set.salt").write_text("another salt of length")
    with pytest.raises(UserError, match="another salt"):
        bring_in(folder, tmp_path / "set")


def test_what_cannot_be_a_slab_or_whole(tmp_path: Path) -> None:
    colours = np.zeros((2, 4, 12), np.uint8)
    words = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "Columns": 4}
    save_dicom(tmp_path / "clinic" / "a.dcm", colours, 8, **words)
    for kind in ("slabs", "whole"):
        with pytest.raises(UserError, match="frames of colours"):
            bring_in(tmp_path / "clinic", tmp_path / kind, volumes=kind)
    with pytest.raises(UserError, match="--bits"):
        bring_in(tmp_path / "clinic", tmp_path / "set", volumes="slabs", bits=16)


def test_burned_in_names_are_told(tmp_path: Path) -> None:
    save_dicom(tmp_path / "clinic/a.dcm", np.zeros((4, 4), np.uint8), 8, BurnedInAnnotation="YES", Modality="US")
    assert "1 say that names are burned into their pixels" in bring_in(tmp_path / "clinic", tmp_path / "set")


def test_a_nifti_of_real_numbers(tmp_path: Path) -> None:
    (tmp_path / "clinic").mkdir()
    volume = np.linspace(0, 1, 60, dtype=np.float32).reshape(4, 5, 3)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "clinic/a.nii")
    bring_in(tmp_path / "clinic", tmp_path / "set", window="0.5/1", slices=99)
    rows = manifest(tmp_path / "set")
    assert len(rows) == 3
    assert np.array_equal(pixels(tmp_path / "set", rows[0]), np.rint(volume[::-1, ::-1, 0].T * 255))


@pytest.mark.usefixtures("cache")
def test_the_manifest_is_a_table_of_images(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("fedsim.data.datasets.table", reason="sets in tables are not there yet")
    rows = [
        {
            "path": f"{kind}/{number}.{suffix}",
            "label": ("clear", "nodule")[number % 2],
            "site": kind,
            "patient": "",
            "split": split,
        }
        for kind, suffix, split in (("ct", "dcm", "train"), ("mr", "nii.gz", "val"), ("deep", "png", "test"))
        for number in range(3)
    ]
    bring_in(folder, tmp_path / "set", labels=write_labels(tmp_path / "labels.csv", rows), slices=2)
    columns = {"path": "path", "label": "label", "site": "site", "patient": "patient", "split": "split"}
    dataset = load_set("table", root=str(tmp_path / "set"), file="manifest.csv", columns=columns, image_size=8)
    assert dataset.class_names == ("clear", "nodule")
    assert dataset.site_names == ("ct", "deep", "mr")
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [3, 6, 3]


def test_reading_files_needs_no_torch() -> None:
    """A process of an import that imported it would take seconds more and three times the memory."""
    program = "import sys, launch, fedsim.data.clinic.importer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(launch.__file__).parent).returncode == 0
