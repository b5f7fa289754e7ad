"""PNG and TIFF with more than 8 bits: values, polarity and spacing, from Pillow and from tifffile."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from fedsim.data.clinic.pictures import read_picture
from fedsim.errors import UserError

DEEP = np.random.default_rng(2).integers(0, 65536, (7, 9)).astype(np.uint16)


def values(path: Path) -> np.ndarray:
    return read_picture(path).frame(0).values


def test_16_bit_png_and_tiff_keep_their_values(tmp_path: Path) -> None:
    Image.fromarray(DEEP).save(tmp_path / "a.png")
    Image.fromarray(DEEP).save(tmp_path / "a.tif", compression="tiff_lzw")
    tifffile.imwrite(tmp_path / "b.tif", DEEP)
    tifffile.imwrite(tmp_path / "c.tif", DEEP, byteorder=">", rowsperstrip=2)
    tifffile.imwrite(tmp_path / "d.tif", DEEP.astype(np.float32) / 7)
    for name in ("a.png", "a.tif", "b.tif", "c.tif"):
        assert np.array_equal(values(tmp_path / name), DEEP), name
    assert np.allclose(values(tmp_path / "d.tif"), DEEP / np.float32(7))


def test_numbers_that_pillow_takes_for_others_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.array([[-1, 1]], np.int8))
    tifffile.imwrite(tmp_path / "b.tif", np.array([[1, 2**31]], np.uint32))
    for name, found in (("a.tif", "8 bits with a sign"), ("b.tif", r"values of 2\^31")):
        with pytest.raises(UserError, match=found):
            read_picture(tmp_path / name)
    for dtype in (np.int16, np.int32, np.uint32):
        tifffile.imwrite(tmp_path / "c.tif", DEEP.astype(dtype))
        assert np.array_equal(values(tmp_path / "c.tif"), DEEP.astype(dtype))


def test_a_tiff_whose_lowest_value_is_white_is_inverted_once(tmp_path: Path) -> None:
    """Pillow inverts 8 bits itself, and leaves 16 bits."""
    tifffile.imwrite(tmp_path / "16.tif", DEEP, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "8.tif", DEEP.astype(np.uint8), photometric="miniswhite")
    deep, plain = (read_picture(tmp_path / name).frame(0) for name in ("16.tif", "8.tif"))
    assert deep.is_inverted
    assert np.array_equal(deep.values, DEEP)
    assert not plain.is_inverted
    assert np.array_equal(plain.values, 255 - DEEP.astype(np.uint8))


def test_spacing_is_what_a_tiff_says(tmp_path: Path) -> None:
    """What stands in PNG and JPEG is a screen's or a camera's dots."""
    Image.fromarray(DEEP).save(tmp_path / "a.png", dpi=(254, 127))
    tifffile.imwrite(tmp_path / "a.tif", DEEP, resolution=(100, 50), resolutionunit="CENTIMETER")
    tifffile.imwrite(tmp_path / "b.tif", DEEP, resolution=(100, 50), resolutionunit="NONE")
    Image.fromarray(DEEP.astype(np.uint8)).save(tmp_path / "a.jpg", dpi=(254, 127))
    spacings = [read_picture(tmp_path / name).frame(0).spacing for name in ("a.png", "a.tif", "b.tif", "a.jpg")]
    assert spacings[1] == pytest.approx((0.2, 0.1))
    assert (spacings[0], *spacings[2:]) == (None, None, None)


def test_8_bits_are_as_they_are(tmp_path: Path) -> None:
    grey = DEEP.astype(np.uint8)
    colours = np.stack([grey, grey // 2, grey // 3], axis=2)
    for name, pixels in (("g.png", grey), ("c.png", colours), ("c.tif", colours)):
        Image.fromarray(pixels).save(tmp_path / name)
        assert np.array_equal(values(tmp_path / name), pixels)


def test_what_has_no_place_is_one_line(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "colours.tif", np.stack([DEEP] * 3, axis=2), photometric="rgb")
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([DEEP] * 4), photometric="minisblack")
    tifffile.imwrite(tmp_path / "nan.tif", np.full((4, 4), np.nan, np.float32))
    for name, found in (("colours", "colours of 16 bits|unreadable"), ("pages", "4 pages"), ("nan", "finite value")):
        with pytest.raises(UserError, match=found):
            read_picture(tmp_path / f"{name}.tif")
