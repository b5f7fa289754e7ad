"""DICOM's compressions, on the files that pydicom brings for its own tests."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels.decoders import JPEGLSLosslessDecoder, RLELosslessDecoder
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import UID, JPEGLSLossless, RLELossless

from fedsim.data.clinic.dicom import read_dicom
from fedsim.errors import UserError

DICOM = Path(pydicom.__file__).parent / "data" / "test_files"
#: JPEG baseline, extended and lossless, JPEG-LS, JPEG 2000 and RLE.
READ = (
    "693_J2KI.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "JPGExtended.dcm",
    "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jls_lossy_line.dcm",
    "SC_rgb_jls_lossy_sample.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle_16bit.dcm",
    "examples_jpeg2k.dcm",
)  # fmt: skip
#: Nine squares of saturated colours.
SQUARES = [name for name in READ if name.startswith("SC_rgb")]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


@pytest.mark.parametrize("name", READ)
def test_every_compression_is_read(name: str) -> None:
    frame = read_dicom(DICOM / name).frame(0)
    assert frame.values.shape[:2] == (pydicom.dcmread(DICOM / name).Rows, pydicom.dcmread(DICOM / name).Columns)
    assert frame.values.std() > 0


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_what_loses_nothing_is_the_plain_picture(name: str) -> None:
    plain = read_dicom(DICOM / "MR_small.dcm").frame(0).values
    assert np.array_equal(read_dicom(DICOM / name).frame(0).values, plain)


@pytest.mark.parametrize("name", SQUARES)
def test_colours_are_the_same_in_all_of_them(name: str) -> None:
    right = read_dicom(DICOM / "SC_rgb_rle.dcm").frame(0).values.astype(int)
    seen = read_dicom(DICOM / name).frame(0).values.astype(int)
    inside = np.s_[5::10, 5::10]  # an edge between two squares is not sharp in what loses something
    assert np.abs(seen[inside] - right[inside]).max() <= 5


def test_a_picture_of_12_bits_keeps_them() -> None:
    assert read_dicom(DICOM / "JPGExtended.dcm").frame(0).values.max() > 255


@pytest.mark.parametrize("name", READ)
def test_a_file_that_was_cut_off_is_one_line(name: str, tmp_path: Path) -> None:
    content, pixels = (DICOM / name).read_bytes(), pydicom.dcmread(DICOM / name).PixelData
    start = content.index(pixels[8:64])
    (tmp_path / "cut.dcm").write_bytes(content[: start + int(0.7 * len(pixels))])
    with pytest.raises(UserError, match=r"cut\.dcm") as caught:
        read_dicom(tmp_path / "cut.dcm").frame(0)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "decoder", "syntax"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", JPEGLSLosslessDecoder, JPEGLSLossless),
        ("MR_small_RLE.dcm", RLELosslessDecoder, RLELossless),
    ],
)
def test_what_to_install_is_named(name: str, decoder: Decoder, syntax: UID, monkeypatch: pytest.MonkeyPatch) -> None:
    """gdcm is no help: over some damaged files it ends the whole process."""
    monkeypatch.setattr(decoder, "_available", {"gdcm": None})
    expected = rf"{syntax.name}, 16 bits; expected pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
    with pytest.raises(UserError, match=expected):
        read_dicom(DICOM / name)


def test_what_pydicom_does_not_know_is_one_line(tmp_path: Path) -> None:
    data = pydicom.dcmread(DICOM / "MR_small_RLE.dcm")
    data.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.100")  # MPEG-2
    data.save_as(tmp_path / "video.dcm")
    with pytest.raises(UserError, match=r"compressed as MPEG2.*; expected none, or one that pydicom knows: JPEG"):
        read_dicom(tmp_path / "video.dcm")
