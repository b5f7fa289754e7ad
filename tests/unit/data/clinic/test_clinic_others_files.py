"""Files that this project did not write: those that pydicom, nibabel and scikit-image bring for their own tests."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import skimage
from pydicom.pixels import apply_modality_lut, apply_windowing, pixel_array

from fedsim.data.clinic.dicom import read_dicom
from fedsim.data.clinic.nifti import read_nifti
from fedsim.data.clinic.pictures import read_picture
from fedsim.data.clinic.windows import parse_window, shown, windows_of
from fedsim.errors import UserError
from tests.unit.data.clinic.clinic_folder import bring_in, manifest

DICOM = Path(pydicom.__file__).parent / "data" / "test_files"
NIFTI = Path(nibabel.__file__).parent / "tests" / "data"
NIBABELS_DICOM = Path(nibabel.__file__).parent / "nicom" / "tests" / "data"
PICTURES = Path(skimage.__file__).parent / "data"

#: Grey pictures: slices, a projection, 8 to 16 bits, with and without windows, in several compressions.
GREY = (
    "693_J2KI.dcm", "CT_small.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "MR_small.dcm", "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm", "MR_small_padded.dcm",
    "image_dfl.dcm",
)  # fmt: skip
SAME_AS_MR_SMALL = [name for name in GREY if name.startswith("MR_small_")]
#: What is wrong with each of them.
BAD = {
    "MR_truncated.dcm": "bytes of pixel data is less than expected",
    "no_meta.dcm": "File is missing DICOM",
    "GDCMJ2K_TextGBR.dcm": "Unable to decode",
    "empty_charset_LEI.dcm": "no pixels",
}
NO_PICTURE = ("rtplan.dcm", "reportsi.dcm", "test-SR.dcm", "waveform_ecg.dcm", "rtdose.dcm", "liver_1frame.dcm")


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def as_shown(path: Path, window: str) -> np.ndarray:
    scan = read_dicom(path)
    frame = scan.frame(0)
    return shown(frame, windows_of(str(path), [frame], parse_window(window), scan.modality)[0])


@pytest.mark.parametrize("name", GREY)
def test_values_and_windows_are_pydicoms(name: str) -> None:
    data: Any = pydicom.dcmread(DICOM / name)
    values = np.asarray(apply_modality_lut(pixel_array(data), data), np.float64)
    frame = read_dicom(DICOM / name).frame(0)
    assert np.allclose(frame.values, values)
    if "WindowCenter" not in data:
        return
    windowed = apply_windowing(values, data)
    low, high = windowed.min(), windowed.max()
    mine = as_shown(DICOM / name, "file")
    assert frame.is_inverted == (data.PhotometricInterpretation == "MONOCHROME1")
    right = (windowed - low) / (high - low)
    seen = (mine - mine.min()) / (mine.max() - mine.min())
    assert np.abs((1 - right if frame.is_inverted else right) - seen).max() < 1e-5


@pytest.mark.parametrize("name", SAME_AS_MR_SMALL)
def test_one_picture_in_many_encodings_is_one_picture(name: str) -> None:
    assert np.array_equal(read_dicom(DICOM / name).frame(0).values, read_dicom(DICOM / "MR_small.dcm").frame(0).values)


def test_colours_in_many_encodings() -> None:
    """Nine squares of saturated colours, in RGB and in YBR, raw and as JPEG and RLE."""
    plain = read_dicom(DICOM / "SC_rgb_small_odd.dcm").frame(0).values
    assert plain.shape == (3, 3, 3)
    right = read_dicom(DICOM / "SC_rgb_rle.dcm").frame(0).values
    assert right[5, 50].tolist() == [255, 0, 0]
    for name in (
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
    ):
        seen = read_dicom(DICOM / name).frame(0).values.astype(int)
        assert np.abs(seen[5, 50] - [255, 0, 0]).max() <= 2, name
    assert read_dicom(DICOM / "SC_rgb_rle_16bit_2frame.dcm").frame(1).values[5, 50].tolist() == [0, 255, 255]
    palette = read_dicom(DICOM / "examples_palette.dcm").frame(0).values
    assert palette.ndim == 3
    assert palette.max() > 200


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_files_are_one_line(name: str) -> None:
    with pytest.raises(UserError, match=BAD[name]) as caught:
        read_dicom(DICOM / name).frame(0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NO_PICTURE)
def test_reports_plans_doses_and_segmentations_are_no_pictures(name: str) -> None:
    assert read_dicom(DICOM / name).num_frames == 0


@pytest.mark.parametrize("name", ["0.dcm", "1.dcm", "csa_slice_norm.dcm", "decimal_rescale.dcm"])
def test_dicom_files_of_nibabel(name: str) -> None:
    data: Any = pydicom.dcmread(NIBABELS_DICOM / name)
    if "PixelData" not in data:
        with pytest.raises(UserError, match=r"no pixels|one of"):
            read_dicom(NIBABELS_DICOM / name)
        return
    frame = read_dicom(NIBABELS_DICOM / name).frame(0)
    assert np.allclose(frame.values, apply_modality_lut(pixel_array(data), data))


@pytest.mark.parametrize("name", ["anatomical.nii", "reoriented_anat_moved.nii", "standard.nii.gz"])
def test_volumes_of_nibabel_are_seen_as_itk_turns_them(name: str) -> None:
    scan = read_nifti(NIFTI / name)
    mine = np.stack([scan.frame(place).values for place in range(scan.num_frames)])
    image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(NIFTI / name), "LPS")
    assert np.array_equal(mine, SimpleITK.GetArrayFromImage(image))
    assert scan.frame(0).spacing == pytest.approx(image.GetSpacing()[1::-1], rel=1e-4)
    assert scan.between == pytest.approx(image.GetSpacing()[2], rel=1e-4)


def test_pictures_of_scikit_image() -> None:
    assert read_picture(PICTURES / "camera.png").frame(0).values.shape == (512, 512)
    assert read_picture(PICTURES / "microaneurysms.png").frame(0).values.shape == (102, 102)
    assert read_picture(PICTURES / "color.png").frame(0).values.shape[2] == 3
    with pytest.raises(UserError, match="2 pages"):
        read_picture(PICTURES / "multipage.tif")


def test_a_folder_of_all_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "clinic"
    folder.mkdir()
    for number, files in enumerate((DICOM, NIFTI, NIBABELS_DICOM)):
        (folder / str(number)).symlink_to(files)
    said = bring_in(folder, tmp_path / "set", window="file,1%-99%", size=32, slices=2, skip_bad=True)
    rows = manifest(tmp_path / "set")
    sources = {row["source"] for row in rows}
    assert {f"0/{name}" for name in GREY} <= sources
    assert not {f"0/{name}" for name in (*BAD, *NO_PICTURE)} & sources
    assert {"1/anatomical.nii", "2/0.dcm"} <= sources
    assert "files skipped" in said
