"""Pictures of more than 8 bits in folders and tables: the window that the config gives, as an import has it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from fedsim.config.data import DataConfig
from fedsim.data.images import read_rgb
from fedsim.data.windowed import reader_of
from fedsim.errors import UserError
from tests.helpers import load_set
from tests.unit.data.clinic.clinic_folder import bring_in, manifest, pixels

pytestmark = pytest.mark.usefixtures("cache")
DEEP = np.random.default_rng(2).integers(900, 5000, (8, 8)).astype(np.uint16)


def write(root: Path, count: int = 20) -> Path:
    """Two classes of 16-bit PNGs, and an 8-bit one among each."""
    for place, name in enumerate(("dark", "light")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(DEEP + np.uint16(100 * number + 3000 * place)).save(root / name / f"{number:02}.png")
        Image.fromarray((DEEP >> 5).astype(np.uint8)).save(root / name / "plain.png")
    return root


def load(root: Path, **words: Any) -> Any:
    return load_set("image_folder", root=str(root), image_size=8, **words)


@pytest.mark.parametrize("window", ["1%-99%", "3000/4000"])
def test_it_is_what_an_import_makes_of_them(tmp_path: Path, window: str) -> None:
    """Without a resampling, so that all is in the window."""
    data = load(write(tmp_path / "set"), window=window)
    bring_in(tmp_path / "set", tmp_path / "out", window=window)
    rows = {row["source"]: pixels(tmp_path / "out", row) for row in manifest(tmp_path / "out")}
    assert len(rows) == len(data.images) == 42
    for name, image in zip(data.file_names, data.images.numpy(), strict=True):
        assert np.array_equal(image, np.stack([rows[name]] * 3)), name
    assert len(np.unique(data.images.numpy()[0])) > 50


def test_black_and_white_are_the_windows_ends(tmp_path: Path) -> None:
    values = np.array([[0, 1000, 1500, 2000, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "b.tif", values.astype(np.float32) - 1024)
    read = reader_of("1500/1000")
    assert np.asarray(read(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert np.asarray(read(tmp_path / "a.tif"))[0, :, 0].tolist() == [255, 255, 128, 0, 0]
    assert np.asarray(reader_of("476/1000")(tmp_path / "b.tif"))[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert np.asarray(reader_of("0%-100%")(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 4, 6, 8, 255]


def test_8_bits_and_colours_are_as_they_are(tmp_path: Path) -> None:
    colours = np.random.default_rng(3).integers(256, size=(5, 4, 3), dtype=np.uint8)
    for name, picture in (("c.png", colours), ("c.jpg", colours), ("g.png", colours[..., 0])):
        Image.fromarray(picture).save(tmp_path / name)
        assert np.array_equal(reader_of("40/80")(tmp_path / name), read_rgb(tmp_path / name))


def test_another_window_is_another_set_of_the_cache(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    one, other = load(root, window="3000/4000"), load(root, window="3000/2000")
    assert not np.array_equal(one.images, other.images)
    assert np.array_equal(load(root, window="3000/4000").images, one.images)


def test_tables_and_images_with_masks_take_it_too(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    rows = [f"{kind}/{number:02}.png,{kind}" for kind in ("dark", "light") for number in range(20)]
    (root / "labels.csv").write_text("\n".join(["path,label", *rows]))
    words = {"file": "labels.csv", "columns": {"label": "label"}, "window": "3000/4000", "image_size": 8}
    assert np.array_equal(
        load_set("table", root=str(root), **words).images[0], load(root, window="3000/4000").images[0]
    )
    for number in range(20):
        for name, picture in (("images", DEEP), ("masks", (DEEP > 2000).astype(np.uint8))):
            (tmp_path / "masked" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / f"masked/{name}/{number}.png")
    data = load_set("mask_folder", root=str(tmp_path / "masked"), image_size=8, window="0%-100%")
    assert (int(data.images[0].min()), int(data.images[0].max())) == (0, 255)
    with pytest.raises(UserError, match=r"pixels of mode I;16; .*expected an image with 8 bits per channel"):
        load_set("mask_folder", root=str(tmp_path / "masked"), image_size=8)


def test_without_a_window_nothing_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"40 of 42 images: .*pixels of mode I;16.*; expected .* data.window where the"):
        load(write(tmp_path / "set"))


def test_colours_of_16_bits_are_refused_all_the_same(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "c.tif", np.stack([DEEP] * 3, 2), photometric="rgb")
    with pytest.raises(UserError, match=r"colours of 16 bits|unreadable"):
        reader_of("1%-99%")(tmp_path / "c.tif")


@pytest.mark.parametrize("window", ["lung", "file", "40/", "40", "1%-99", "a/b", "", "1e3/4"])
def test_a_window_that_is_none_is_refused(window: str) -> None:
    with pytest.raises(ValueError, match=r"window"):
        DataConfig.model_validate({"name": "image_folder", "root": ".", "window": window})


@pytest.mark.parametrize("window", ["40/0", "40/-3", "9%-2%", "1%-101%"])
def test_a_window_without_width_is_one_line(tmp_path: Path, window: str) -> None:
    with pytest.raises(UserError, match=r"data.window: found '.*'; expected CENTRE/WIDTH or LOW%-HIGH%"):
        load(write(tmp_path / "set", 2), window=window)


def test_sets_that_are_no_files_of_the_users_have_no_use_for_it() -> None:
    with pytest.raises(ValueError, match=r"window: found '1%-99%' with name: digits, which is not read from image fil"):
        DataConfig.model_validate({"name": "digits", "window": "1%-99%"})
