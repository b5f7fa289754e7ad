"""DICOM values: rescaled as the standard says, where libraries do not; windows; compression; what cannot be read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import JPEGLSLossless, RLELossless

from fedsim.data.clinic.dicom import read_dicom
from fedsim.data.clinic.windows import Window, parse_window, shown, windows_of
from fedsim.errors import UserError
from tests.unit.data.clinic.dicom_files import item, make_dicom, per_frame, save_dicom


def picture(path: Path, window: str = "file", frame: int = 0) -> np.ndarray:
    """A frame as it is shown, in shares of white."""
    scan = read_dicom(path)
    one = scan.frame(frame)
    return shown(one, windows_of("file", [one], parse_window(window), scan.modality)[0])


def test_every_frame_of_an_enhanced_file_has_its_own_slope_and_intercept(tmp_path: Path) -> None:
    """The values of the issue: SimpleITK takes the first frame's for all, pydicom's apply_modality_lut none."""
    stored = np.stack([np.full((2, 3), value, np.uint16) for value in (1, 25, 49, 73, 97)])
    groups = per_frame((1, 2, 3, 4, 5), (-10, -10, -10, -10, -10))
    path = save_dicom(tmp_path / "enhanced.dcm", stored, PerFrameFunctionalGroupsSequence=groups)
    scan = read_dicom(path)
    means = [float(scan.frame(place).values.mean()) for place in range(scan.num_frames)]
    assert means == [-9, 40, 137, 282, 475]
    data = dcmread(path)
    assert apply_modality_lut(data.pixel_array, data)[:, 0, 0].tolist() == [1, 25, 49, 73, 97]
    assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))[:, 0, 0].tolist() == [-9, 15, 39, 63, 87]


def test_what_all_frames_share_and_what_each_says_itself(tmp_path: Path) -> None:
    stored = np.stack([np.full((2, 2), value, np.uint16) for value in (10, 20)])
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.25], SpacingBetweenSlices=3)],
        PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=1)],
        FrameVOILUTSequence=[item(WindowCenter=20, WindowWidth=40, VOILUTFunction="LINEAR_EXACT")],
    )
    own = [
        item(FrameVOILUTSequence=[item(WindowCenter=41, WindowWidth=2, VOILUTFunction="LINEAR_EXACT")]),
        item(FrameContentSequence=[item(StackID="1")]),
    ]
    path = save_dicom(
        tmp_path / "a.dcm", stored, SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=own
    )
    scan = read_dicom(path)
    frames = [scan.frame(place) for place in range(2)]
    assert [float(frame.values[0, 0]) for frame in frames] == [21, 41]
    assert [frame.own_window.name for frame in frames if frame.own_window] == ["41/2", "20/40"]
    assert frames[1].spacing == (0.5, 0.25)
    assert scan.between == 3


@pytest.mark.parametrize(("bits", "signed"), [(12, False), (12, True), (16, False), (16, True)])
def test_monochrome1_is_inverted_after_rescale_and_window(bits: int, signed: bool, tmp_path: Path) -> None:
    """SimpleITK inverts what is stored before it rescales; pydicom inverts nothing."""
    values = np.array([[0, 5, 300, 2000]], np.int16 if signed else np.uint16)
    words = {"RescaleSlope": 2, "RescaleIntercept": -10, "WindowCenter": 300, "WindowWidth": 1000}
    plain = save_dicom(tmp_path / "2.dcm", values, bits, **words)
    inverted = save_dicom(tmp_path / "1.dcm", values, bits, PhotometricInterpretation="MONOCHROME1", **words)
    assert read_dicom(inverted).frame(0).values.tolist() == [[-10, 0, 590, 3990]]
    if not signed:
        first = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(inverted)).ravel()[0]
        assert first == 2 * (2**bits - 1) - 10
    assert np.allclose(picture(inverted), 1 - picture(plain), atol=1e-6)
    assert picture(plain).max() == 1


@pytest.mark.filterwarnings("ignore:overflow")  # pydicom's own sigmoid
@pytest.mark.parametrize("form", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(40, 400), (-600, 1500), (0.5, 1)])
def test_windows_of_a_file_are_pydicoms(form: str, centre: float, width: float, tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(-1024, 2048, (8, 9)).astype(np.int16)
    path = save_dicom(tmp_path / "a.dcm", values, WindowCenter=centre, WindowWidth=width, VOILUTFunction=form)
    right = apply_windowing(values, dcmread(path))
    right = (right + 2**15) / (2**16 - 1)
    assert np.abs(picture(path) - right).max() < 1e-6


@pytest.mark.parametrize("form", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_after_a_negative_slope_keeps_low_values_dark(form: str, tmp_path: Path) -> None:
    """apply_windowing turns the grey scale round there."""
    words = {"WindowCenter": 0, "WindowWidth": 2000, "VOILUTFunction": form}
    stored = np.array([[0, 500, 1000, 1500, 2000]], np.uint16)
    down = save_dicom(tmp_path / "a.dcm", stored, 12, RescaleSlope=-1, RescaleIntercept=1000, **words)
    up = save_dicom(tmp_path / "b.dcm", stored, 12, RescaleSlope=1, RescaleIntercept=-1000, **words)
    assert np.array_equal(picture(down), picture(up)[:, ::-1])
    assert (np.diff(picture(up)) > 0).all()


def test_windows_by_name_by_numbers_and_by_percentiles(tmp_path: Path) -> None:
    values = np.arange(-1000, 1000, dtype=np.int16).reshape(40, 50)
    path = save_dicom(tmp_path / "a.dcm", values, WindowCenter=[0, 40], WindowWidth=[100, 400])
    assert read_dicom(path).frame(0).own_window.name == "0/100 LINEAR"  # type: ignore[union-attr]  # it has one
    lung = picture(path, "lung").ravel()
    assert (lung[0], lung[-1]) == pytest.approx(((-1000 + 1350) / 1500, 1))
    assert np.array_equal(picture(path, "-600/1500"), picture(path, "lung"))
    low, high = np.percentile(values, (5, 95))
    spread = picture(path, "5%-95%")
    assert np.allclose(spread, np.clip((values - low) / (high - low), 0, 1), atol=1e-5)
    assert np.array_equal(picture(path, "file,lung"), picture(path))


def test_a_file_without_a_window_is_refused_or_takes_another(tmp_path: Path) -> None:
    values = np.arange(100, dtype=np.uint16).reshape(10, 10)
    path = save_dicom(tmp_path / "a.dcm", values)
    with pytest.raises(UserError, match="no window in the file"):
        picture(path)
    assert np.allclose(picture(path, "file,0%-100%"), values / 99, atol=1e-6)


def test_a_preset_is_for_ct_alone(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "a.dcm", np.zeros((2, 2), np.uint16), Modality="MR")
    with pytest.raises(UserError, match="modality MR with --window lung"):
        picture(path, "lung")


@pytest.mark.parametrize(
    "text", ["", "lungs", "40", "40/0", "40/-3", "5%", "95%-5%", "0%-101%", "lung,file", "file,file", "file,lung,bone"]
)
def test_a_window_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="--window"):
        parse_window(text)


@pytest.mark.parametrize(
    "words", [{"WindowWidth": 0}, {"WindowWidth": 0.5}, {"WindowWidth": 10, "VOILUTFunction": "OTHER"}]
)
def test_a_window_of_the_file_that_is_none_is_one_line(words: dict[str, Any], tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "a.dcm", np.zeros((2, 2), np.uint16), WindowCenter=5, **words)
    with pytest.raises(UserError, match=r"a window 5/0|of the form OTHER"):
        picture(path)


@pytest.mark.parametrize("bits", [8, 12])
def test_a_table_in_place_of_a_window(bits: int, tmp_path: Path) -> None:
    """A table of 8 bits with more than 256 entries, which pydicom's apply_voi wraps around."""
    table = (np.arange(1024) * (2**bits - 1) // 1023).astype(np.uint16)
    lut = item(LUTDescriptor=[1024, 100, bits])
    lut.add_new("LUTData", "OW", table.tobytes())
    values = np.array([[0, 100, 611, 1123, 4000]], np.uint16)
    path = save_dicom(tmp_path / "a.dcm", values, 12, VOILUTSequence=[lut])
    assert np.allclose(picture(path), table[[[0, 0, 511, 1023, 1023]]] / (2**bits - 1))


def test_a_table_of_the_modality(tmp_path: Path) -> None:
    lut = item(LUTDescriptor=[4, 1, 16], ModalityLUTType="OD")
    lut.add_new("LUTData", "OW", np.array([10, 20, 40, 80], np.uint16).tobytes())
    path = save_dicom(tmp_path / "a.dcm", np.array([[0, 1, 2, 9]], np.uint16), ModalityLUTSequence=[lut])
    assert read_dicom(path).frame(0).values.tolist() == [[10, 10, 20, 80]]


def test_signed_values_far_beyond_a_table_take_its_last_entry(tmp_path: Path) -> None:
    """In 16 bits 32767 less a first entry of -2 would wrap around to the table's beginning."""
    lut = item(LUTDescriptor=[4, -2, 16], ModalityLUTType="OD")
    lut.add_new("LUTData", "OW", np.array([10, 20, 40, 80], np.uint16).tobytes())
    path = save_dicom(tmp_path / "a.dcm", np.array([[-32768, -2, -1, 32767]], np.int16), ModalityLUTSequence=[lut])
    assert read_dicom(path).frame(0).values.tolist() == [[10, 10, 20, 80]]


def test_8_bits_that_nothing_changes_are_shown_as_they_are(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = save_dicom(tmp_path / "a.dcm", values, 8, Modality="US")
    assert np.array_equal(np.rint(picture(path) * 255), values)


@pytest.mark.parametrize(("signed", "right"), [(0, [4095, 2048, 5, 5]), (1, [-1, -2048, 5, 5])])
def test_bits_above_those_that_are_stored_count_nothing(signed: int, right: list[int], tmp_path: Path) -> None:
    """Old files keep an overlay in the upper 4 bits of 16."""
    stored = np.array([[0x0FFF, 0x0800, 0x1005, 0xF005]], np.uint16)
    path = save_dicom(tmp_path / "a.dcm", stored, 12, PixelRepresentation=signed)
    assert read_dicom(path).frame(0).values.tolist() == [right]


def test_values_in_the_upper_bits_are_refused(tmp_path: Path) -> None:
    """pydicom takes the lowest bits, whatever HighBit says."""
    path = save_dicom(tmp_path / "a.dcm", np.array([[0x0FF0, 0xFFF0]], np.uint16), 12, HighBit=15)
    assert dcmread(path).pixel_array.tolist() == [[0x0FF0, 0x0FF0]]
    with pytest.raises(UserError, match=r"12 bits up to bit 15; expected the lowest bits, up to 11"):
        read_dicom(path)


@pytest.mark.parametrize("words", [np.uint8, np.uint16])
def test_a_palette_of_8_bits(words: type, tmp_path: Path) -> None:
    """Its entries may lie in words of 16 bits; an index beyond its ends has the colour of its end."""
    entries = np.arange(30, dtype=words).reshape(3, 10) * 8
    palette = {
        f"{name}PaletteColorLookupTable{part}": value
        for name, row in zip(("Red", "Green", "Blue"), entries, strict=True)
        for part, value in (("Descriptor", [10, 4, 8]), ("Data", row.tobytes()))
    }
    stored = np.array([[0, 4, 13, 14, 260, 4096]], np.uint16)
    path = save_dicom(tmp_path / "a.dcm", stored, PhotometricInterpretation="PALETTE COLOR", **palette)
    assert np.array_equal(read_dicom(path).frame(0).values[0], entries.T[[0, 0, 9, 9, 9, 9]])


def test_padding_is_black_and_in_no_percentile(tmp_path: Path) -> None:
    values = np.full((10, 10), -2000, np.int16)
    values[2:8, 2:8] = np.arange(36).reshape(6, 6)
    for kind in ("MONOCHROME1", "MONOCHROME2"):
        path = save_dicom(tmp_path / "a.dcm", values, PixelPaddingValue=-2000, PhotometricInterpretation=kind)
        seen = picture(path, "0%-100%")
        assert not seen[:2].any()
        assert sorted({seen[2, 2], seen[7, 7]}) == [0, 1]


def test_colours(tmp_path: Path) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    words = {
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "Rows": 5,
        "Columns": 6,
    }
    path = tmp_path / "a.dcm"
    data = make_dicom(colours.reshape(5, 18), 8, **words)
    data.save_as(path, enforce_file_format=True)
    assert np.array_equal(read_dicom(path).frame(0).values, colours)


def test_a_compression_that_pydicom_reads_itself(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8)
    data = make_dicom(values)
    data.compress(RLELossless)
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert np.array_equal(read_dicom(tmp_path / "a.dcm").frame(0).values, values)


def test_a_compressed_picture_without_content_is_one_line(tmp_path: Path) -> None:
    data = make_dicom(np.zeros((4, 4), np.uint16))
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    data.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    data["PixelData"].VR = "OB"
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(UserError, match="a whole DICOM file with a picture"):
        read_dicom(tmp_path / "a.dcm").frame(0)


def test_what_is_no_picture_has_no_frame_and_what_lacks_its_pixels_is_refused(tmp_path: Path) -> None:
    data = make_dicom(np.zeros((4, 4), np.uint16))
    del data.PixelData
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(UserError, match="no pixels"):
        read_dicom(tmp_path / "a.dcm")
    del data.Rows
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.5"  # a plan
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert read_dicom(tmp_path / "a.dcm").num_frames == 0


@pytest.mark.parametrize("length", [100, 200, 400, 700, -3])
def test_a_file_that_is_cut_is_one_line(length: int, tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "a.dcm", np.zeros((4, 4), np.uint16))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"a\.dcm"):
        read_dicom(path).frame(0)


@pytest.mark.parametrize(
    "words", [{"RescaleSlope": 0, "RescaleIntercept": 3}, {"PhotometricInterpretation": "HSV"}, {"Rows": 5000}]
)
def test_what_makes_no_sense_is_one_line(words: dict[str, Any], tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "a.dcm", np.zeros((4, 4), np.uint16), **words)
    with pytest.raises(UserError, match=r"a\.dcm"):
        read_dicom(path).frame(0)


def test_percentiles_of_one_value_are_grey() -> None:
    assert Window(5, 0.0001).shown(np.array([5.0])) == pytest.approx(0.5)
