"""NIfTI volumes: one view whatever way they are stored, by nibabel and by SimpleITK; scaling; what is refused."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from nibabel import orientations as turning

from fedsim.data.clinic.nifti import read_nifti
from fedsim.errors import UserError

SHAPE, SPACING = (5, 6, 7), (0.5, 0.75, 3.0)
AFFINE = np.diag([*SPACING, 1.0])
ORIENTATIONS = ("RAS", "LPS", "LAS", "SRP", "PIL", "ASL", "IPR")


def stored(voxels: np.ndarray, codes: str) -> Any:
    """The volume whose axes run to the right, front and top, with axes in the file that run as ``codes`` say."""
    turn = turning.ornt_transform(turning.axcodes2ornt("RAS"), turning.axcodes2ornt(codes))
    return nibabel.Nifti1Image(
        turning.apply_orientation(voxels, turn), AFFINE @ turning.inv_ornt_aff(turn, voxels.shape)
    )


def frames(path: Path) -> np.ndarray:
    scan = read_nifti(path)
    return np.stack([scan.frame(place).values for place in range(scan.num_frames)])


def made() -> np.ndarray:
    return np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_slices_are_axial_and_seen_from_below(codes: str, tmp_path: Path) -> None:
    """Rows run to the patient's back, columns to the left, slices upwards, as DICOM's axial slices do."""
    nibabel.save(stored(made(), codes), tmp_path / "a.nii.gz")
    right = made()[::-1, ::-1, :].transpose(2, 1, 0)
    assert np.array_equal(frames(tmp_path / "a.nii.gz"), right)
    scan = read_nifti(tmp_path / "a.nii.gz")
    assert scan.frame(0).spacing == pytest.approx((0.75, 0.5))
    assert scan.between == pytest.approx(3.0)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_volume_that_simpleitk_turned_and_wrote_is_the_same(codes: str, tmp_path: Path) -> None:
    nibabel.save(stored(made(), "RAS"), tmp_path / "a.nii")
    image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(tmp_path / "a.nii"), codes)
    SimpleITK.WriteImage(image, tmp_path / "b.nii.gz")
    assert np.array_equal(frames(tmp_path / "b.nii.gz"), frames(tmp_path / "a.nii"))
    # And the view is that of ITK's own axial slices, whose arrays are (slice, row, column) in LPS.
    as_dicom = SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(image, "LPS"))
    assert np.array_equal(frames(tmp_path / "b.nii.gz"), as_dicom)


def with_scaling(path: Path, slope: float, intercept: float) -> Path:
    image = nibabel.Nifti1Image(made(), AFFINE)
    image.to_filename(path)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, intercept], "<f4").tobytes()  # scl_slope and scl_inter
    path.write_bytes(content)
    return path


def test_slope_and_intercept(tmp_path: Path) -> None:
    path = with_scaling(tmp_path / "a.nii", 2, -10)
    assert frames(path)[0, -1, -1] == -10
    assert frames(path).max() == 2 * made().max() - 10


def test_slope_0_is_unscaled(tmp_path: Path) -> None:
    """SimpleITK adds the intercept all the same."""
    path = with_scaling(tmp_path / "a.nii", 0, 7)
    assert np.array_equal(np.sort(frames(path), None), np.sort(made(), None))
    assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).min() == 7


@pytest.mark.parametrize(("unit", "mm"), [("mm", 1), ("unknown", 1), ("micron", 0.001), ("meter", 1000)])
@pytest.mark.parametrize("is_oriented", [True, False])
def test_spacing_is_in_mm_whatever_the_headers_unit(unit: str, mm: float, is_oriented: bool, tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(made(), AFFINE)
    image.header.set_xyzt_units(unit, "sec")
    if not is_oriented:
        image.set_sform(None, 0)
        image.set_qform(None, 0)
    image.to_filename(tmp_path / "a.nii")
    scan = read_nifti(tmp_path / "a.nii")
    columns, rows, between = (mm * size for size in SPACING)
    assert scan.frame(0).spacing == pytest.approx((rows, columns))
    assert scan.between == pytest.approx(between)


def test_windows_of_the_header(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(made(), AFFINE)
    image.header["cal_min"], image.header["cal_max"] = 10, 60
    image.to_filename(tmp_path / "a.nii")
    image = nibabel.Nifti1Image(made().astype(np.uint8), AFFINE)
    image.to_filename(tmp_path / "b.nii")
    windows = [read_nifti(tmp_path / name).frame(0).own_window for name in ("a.nii", "b.nii")]
    assert [window.name for window in windows if window] == ["35/50", "127.5/255"]
    nibabel.Nifti1Image(made(), AFFINE).to_filename(tmp_path / "c.nii")
    assert read_nifti(tmp_path / "c.nii").frame(0).own_window is None


@pytest.mark.parametrize("content", [b"", b"x" * 400, b"\x1f\x8b damaged"])
def test_what_is_no_volume_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / ("a.nii.gz" if content[:1] == b"\x1f" else "a.nii")
    path.write_bytes(content)
    with pytest.raises(UserError, match="unreadable volume"):
        read_nifti(path)
