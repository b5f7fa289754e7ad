"""Image files become pixels: upright, one picture of a file, by the named formats alone, and never by waiting."""

import ast
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsim.data.folders import files_with, subfolders, visible
from fedsim.data.images import prepared_files, read_opaque, read_rgb
from fedsim.data.masks import read_foreground
from fedsim.errors import UserError

ROOT = Path(__file__).parents[3]
#: How the stored pixels come from the upright ones, by tag.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 3),
}
WRITERS: dict[str, dict[str, Any]] = {
    "png": {},
    "tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "webp": {"lossless": True},
    "jpg": {"quality": 100, "subsampling": 0},
}


def save_turned(pixels: np.ndarray, tag: int, path: Path, **options: Any) -> Path:
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(np.ascontiguousarray(STORED[tag](pixels))).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("tag", STORED)
@pytest.mark.parametrize("suffix", WRITERS)
def test_photographs_are_read_upright(tmp_path: Path, suffix: str, tag: int) -> None:
    ramp = np.add.outer(7 * np.arange(12), 3 * np.arange(8)).astype(np.uint8)  # smooth, so that JPEG keeps it
    pixels = np.stack([ramp, ramp + 20, ramp + 90], 2)
    path = save_turned(pixels, tag, tmp_path / f"a.{suffix}", **WRITERS[suffix])
    for read in (read_rgb, read_opaque):
        found = np.asarray(read(path)).astype(int)
        assert found.shape == (12, 8, 3)
        assert np.abs(found - pixels).max() <= (4 if suffix == "jpg" else 0)


def test_each_bit_of_a_png_is_seen(tmp_path: Path) -> None:
    """Pillow takes 5 % of such files, with other pixels, though the format has checksums."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    num_refused = 0
    for place in range(len(whole)):
        (tmp_path / "a.png").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            np.testing.assert_array_equal(np.asarray(read_rgb(tmp_path / "a.png")), pixels)
        except UserError:
            num_refused += 1
    assert num_refused >= len(whole) - 12  # nothing depends on the chunk that ends the file
    (tmp_path / "a.png").write_bytes(whole[:-12])
    with pytest.raises(UserError, match=r"a\.png: found an unreadable image"):
        read_rgb(tmp_path / "a.png")


def test_what_is_no_image_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"a\.png: found an unreadable image \(of no such format\); expected a whole"):
        read_rgb(tmp_path / "a.png")


@pytest.mark.parametrize("tag", STORED)
@pytest.mark.parametrize("suffix", ["png", "tif"])  # Pillow maps this kind of tif where it is opened by its name
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_are_read_upright(tmp_path: Path, suffix: str, tag: int, dtype: type) -> None:
    numbers = np.zeros((12, 8), dtype)
    numbers[1:4, 2:7], numbers[9, 0] = 1, np.iinfo(dtype).max
    path = save_turned(numbers, tag, tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_foreground(path), numbers > 0)


PAGES = [Image.new("L", (9, 9), value) for value in (10, 20, 30)]


@pytest.mark.parametrize(("name", "options"), [("a.tif", {}), ("a.png", {}), ("a.webp", {"lossless": True})])
def test_a_file_with_several_pictures_is_refused(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    PAGES[0].save(tmp_path / name, save_all=True, append_images=PAGES[1:], **options)
    with pytest.raises(UserError, match=rf"{name}: found 3 pages or frames; expected a file with one picture"):
        read_rgb(tmp_path / name)


def test_the_preview_behind_a_photograph_is_no_second_picture(tmp_path: Path) -> None:
    PAGES[2].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=PAGES[:1])
    assert abs(int(np.asarray(read_rgb(tmp_path / "a.jpg"))[0, 0, 0]) - 30) <= 1


@pytest.mark.parametrize("kind", ["GIF", "PPM", "ICO", "TGA"])
def test_other_formats_are_not_tried(tmp_path: Path, kind: str) -> None:
    PAGES[0].convert("RGB").save(tmp_path / "a.png", kind)
    with pytest.raises(UserError, match=r"a.png: found an unreadable image .*; expected .*BMP, JPEG, PNG, TIFF, WEBP"):
        read_rgb(tmp_path / "a.png")


def test_no_code_opens_images_with_all_plugins() -> None:
    for folder in ("fedsim", "algorithms", "comm"):
        for path in (ROOT / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open"]
            assert all("formats" in [word.arg for word in call.keywords] for call in calls), path


@pytest.mark.usefixtures("cache")
def test_all_unusable_files_are_told_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number:02}.png" for number in range(20)]
    for number, path in enumerate(paths):
        Image.new("L", (9, 9), number).save(path)
    for path in paths[3:9]:
        Image.fromarray(np.zeros((9, 9), np.uint16)).save(path)
    paths[12].write_bytes(b"no")
    with pytest.raises(UserError) as caught:
        prepared_files("some", tmp_path, paths, 8)
    text = str(caught.value)
    assert text.startswith("7 of 20 images: found ")
    assert text.count("pixels of mode I;16") == 5
    assert all(f"/{number:02}.png" in text for number in range(3, 8))
    assert "; and 2 more; expected an image with 8 bits per channel" in text
    assert "\n" not in text


# --- what lies in folders


def make_tree(root: Path) -> Path:
    for name in ("b", "a", ".hidden", "__MACOSX"):
        (root / name).mkdir(parents=True)
    for name in ("2.PNG", "1.png", "._1.png", ".DS_Store", "notes.txt"):
        (root / name).write_bytes(b"")
    return root


def test_traces_of_a_mac_are_passed_over(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "set")
    assert [path.name for path in visible(root)] == ["1.png", "2.PNG", "a", "b", "notes.txt"]
    assert [path.name for path in subfolders(root)] == ["a", "b"]
    assert [path.name for path in files_with(root, (".png",))] == ["1.png", "2.PNG"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.symlink_to("gone"), r"3.png: found a link to nothing; expected a file or folder"),
        (lambda path: path.symlink_to("3.png"), r"3.png: found a link to nothing"),
        (os.mkfifo, r"3.png: found no file, but a folder or device; expected a file"),
        (Path.mkdir, r"3.png: found no file, but a folder or device"),
        (lambda path: path.symlink_to("/dev/zero"), r"3.png: found no file, but a folder or device"),
    ],
)
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, spoil: Any, message: str) -> None:
    root = make_tree(tmp_path / "set")
    spoil(root / "3.png")
    with pytest.raises(UserError, match=message):
        files_with(root, (".png",))
