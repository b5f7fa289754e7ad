"""Images and masks in folders per site, as the tests write them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedsim.data import partition_clients
from fedsim.errors import UserError
from tests.helpers import load_set, make_config

pytestmark = pytest.mark.usefixtures("cache")
SITES = ("MoNuSAC2018", "MoNuSAC2020", "TNBC")


def shade(site: int, number: int) -> np.ndarray:
    """A nucleus-coloured square on tissue whose colour tells site and number."""
    pixels = np.full((24, 32, 3), (40 * site, number, 200), np.uint8)
    pixels[4:12, 8:16] = 255
    return pixels


def mask(dtype: type = np.uint8) -> np.ndarray:
    numbers = np.zeros((24, 32), dtype)
    numbers[4:12, 8:12], numbers[4:12, 12:16] = 1, 255
    return numbers


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three sites of eight images; masks are numbered nuclei, of 8 or 16 bits, as png or tif."""
    base = tmp_path / "nuclei"
    for site, name in enumerate(SITES):
        for folder in ("images", "masks"):
            (base / name / folder).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(shade(site, number)).save(base / name / "images" / f"{number}.png")
            numbers = mask(np.uint16) if number % 2 else mask()
            Image.fromarray(numbers).save(base / name / "masks" / f"{number}.{'tif' if number % 2 else 'png'}")
    return base


def test_sites_bring_images_and_masks(root: Path) -> None:
    data = load_set("nuclei", root=str(root), image_size=16)
    assert data.site_names == SITES
    assert data.class_names == ("background", "nucleus")
    assert data.images.shape == (24, 3, 16, 16)
    assert data.images[:, :2, -1, -1].tolist() == [[40 * (n // 8), n % 8] for n in range(24)]
    want = torch.zeros(24, 16, 16, dtype=torch.uint8)
    want[:, 3:8, 4:8] = 1  # rows 4 to 11 of 24 as the pixels nearest to 16 rows see them
    assert torch.equal(data.masks, want)
    assert data.labels.tolist() == [1] * 24


def test_the_split_is_drawn_at_every_site(root: Path) -> None:
    data = load_set("nuclei", root=str(root), image_size=16)
    counts = [np.bincount(data.sites[part]).tolist() for part in (data.train, data.val, data.test)]
    assert counts == [[5, 5, 5], [1, 1, 1], [2, 2, 2]]
    config = make_config(clients={"count": 3, "partition": {"name": "sites"}}).clients
    assert [len(part) for part in partition_clients(data, config, 0)] == [5, 5, 5]


def test_an_empty_mask_has_the_background_as_its_label(root: Path) -> None:
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(root / "TNBC/masks/2.png")
    assert load_set("nuclei", root=str(root), image_size=16).labels.tolist() == [1] * 18 + [0] + [1] * 5


def test_a_changed_mask_is_read_again(root: Path) -> None:
    load_set("nuclei", root=str(root), image_size=16)
    Image.fromarray(np.ones((24, 32), np.uint16)).save(root / "TNBC/masks/7.tif")
    assert load_set("nuclei", root=str(root), image_size=16).masks[23].min() == 1


def put(pixels: np.ndarray, path: str) -> Any:
    def change(root: Path) -> None:
        Image.fromarray(pixels).save(root / path)

    return change


def delete(*paths: str) -> Any:
    def change(root: Path) -> None:
        for path in paths:
            (root / path).unlink()

    return change


def rename(old: str, new: str) -> Any:
    return lambda root: (root / old).rename(root / new)


def stack(path: str) -> Any:
    """Write a file of three pages."""
    pages = [Image.fromarray(mask()) for _ in range(3)]
    return lambda root: pages[0].save(root / path, save_all=True, append_images=pages[1:])


TALL = np.ones((32, 24), np.uint8)
RGBA = np.full((24, 32, 4), 255, np.uint8)
HIDING = RGBA.copy()
HIDING[3, 4, 3] = 254
IMAGES = [f"TNBC/images/{number}.png" for number in range(8)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            delete("TNBC/masks/2.png"),
            r"TNBC/images/2.png: found no mask of that name; expected .*TNBC/masks/2 with one",
        ),
        (delete("TNBC/images/2.png"), r"TNBC/masks/2.png: found no image of that name; expected one in .*TNBC/images"),
        (put(TALL, "TNBC/masks/2.png"), r"masks/2.png: found a mask of 24 x 32 pixels; expected .* image, 32 x 24"),
        (
            put(HIDING, "TNBC/images/2.png"),
            r"images/2.png: found transparent pixels \(mode RGBA\); expected an image that is opaque everywhere",
        ),
        (put(mask(), "TNBC/masks/2.bmp"), r"masks/2.png: found the name of 2.bmp beside it; expected one file of a"),
        (put(TALL, "TNBC/images/2.bmp"), r"images/2.png: found the name of 2.bmp beside it; expected one file of a"),
        (
            lambda root: (delete("TNBC/masks/2.png")(root), (root / "TNBC/masks/2.png").symlink_to("gone")),
            r"TNBC/masks/2.png: found a link to nothing; expected a file or folder",
        ),
        (
            lambda root: Image.fromarray(mask()).save(root / "TNBC/masks/2.png", "JPEG"),
            r"masks/2.png: found an unreadable image .*; expected a whole image file: BMP, PNG, TIFF",
        ),
        (
            lambda root: Image.fromarray(mask().astype(np.float32) / 255).save(root / "TNBC/masks/1.tif"),
            r"masks/1.tif: found a mask of mode F; expected one channel of whole numbers",
        ),
        (stack("TNBC/masks/1.tif"), r"masks/1.tif: found 3 pages or frames; expected a file with one picture"),
        (
            put(RGBA, "TNBC/masks/2.png"),
            r"masks/2.png: found a mask of mode RGBA; expected one channel of whole numbers",
        ),
        (
            lambda root: (
                Image.fromarray(mask(np.uint16)).save((root / IMAGES[2]).with_suffix(".tif")) or delete(IMAGES[2])(root)
            ),
            r"images/2.tif: found pixels of mode I;16; expected an image with 8 bits per channel, or grey",
        ),
        (delete(*IMAGES), r"TNBC/images: found no image; expected files that end in"),
        (rename("TNBC/masks", "TNBC/labels"), r"TNBC/masks: found no such folder; expected <root>/<site>/images"),
        (lambda root: (root / "TNBC/masks/2.png").write_bytes(b"no"), r"masks/2.png: found an unreadable image"),
        (
            lambda root: [(root / site).rename(root / f".{site}") for site in SITES],
            r"nuclei: found no folder of a site",
        ),
    ],
)
def test_a_spoilt_set_is_one_line(root: Path, spoil: Any, message: str) -> None:
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        load_set("nuclei", root=str(root), image_size=16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("colours", [3, 4])
def test_colours_of_16_bits_are_refused_though_pillow_would_cut_them(root: Path, colours: int) -> None:
    from tifffile import imwrite  # Pillow writes no colours of 16 bits; tifffile comes with scikit-image

    delete(IMAGES[2])(root)
    pixels = np.zeros((24, 32, colours), np.uint16)
    extra = {"extrasamples": ["unassalpha"]} if colours == 4 else {}
    imwrite(root / "TNBC/images/2.tif", pixels, photometric="rgb", **extra)
    mode = "RGB" if colours == 3 else "RGBA"
    with pytest.raises(UserError, match=rf"images/2.tif: found pixels of mode {mode}, 16 bits; expected"):
        load_set("nuclei", root=str(root), image_size=16)


def test_an_opaque_alpha_channel_hides_nothing(root: Path) -> None:
    opaque = np.concatenate([shade(2, 2), np.full((24, 32, 1), 255, np.uint8)], 2)
    before = load_set("nuclei", root=str(root), image_size=16)
    put(opaque, "TNBC/images/2.png")(root)
    after = load_set("nuclei", root=str(root), image_size=16)
    assert Image.open(root / "TNBC/images/2.png").mode == "RGBA"
    assert torch.equal(after.images, before.images)


def test_image_and_mask_are_turned_by_their_own_tags(root: Path) -> None:
    """Only the image is stored sideways: as stored, the mask would have another size or lie elsewhere."""
    before = load_set("nuclei", root=str(root), image_size=16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(shade(2, 2))).save(root / "TNBC/images/2.png", exif=exif)
    exif[0x0112] = 3
    Image.fromarray(np.rot90(mask(np.uint16), 2)).save(root / "TNBC/masks/3.tif", exif=exif)
    after = load_set("nuclei", root=str(root), image_size=16)
    assert torch.equal(after.images, before.images)
    assert after.masks is not None
    assert before.masks is not None
    assert torch.equal(after.masks, before.masks)


def test_what_a_mac_leaves_is_passed_over(root: Path) -> None:
    before = load_set("nuclei", root=str(root), image_size=16)
    for name in ("masks/._2.png", "images/._2.png", "masks/.DS_Store"):
        (root / "TNBC" / name).write_bytes(b"not for us")
    (root / "__MACOSX" / "TNBC").mkdir(parents=True)
    after = load_set("nuclei", root=str(root), image_size=16)
    assert after.site_names == SITES
    assert torch.equal(after.images, before.images)


# --- DSB2018 as published


def publish(folder: Path, number: int) -> None:
    """One image, RGBA and opaque, with three nuclei in a file each, of which two touch and one overlaps."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    pixels = np.full((16, 16, 4), (number, 50, 100, 255), np.uint8)
    Image.fromarray(pixels).save(folder / "images" / f"{folder.name}.png")
    for nucleus, (rows, columns) in enumerate(
        ((slice(2, 5), slice(1, 4)), (slice(5, 8), slice(1, 4)), (3, slice(9, 16)))
    ):
        own = np.zeros((16, 16), np.uint8)
        own[rows, columns] = 255
        Image.fromarray(own).save(folder / "masks" / f"{nucleus:064x}.png")


def test_the_nuclei_of_dsb2018_are_merged(tmp_path: Path) -> None:
    for number in range(12):
        publish(tmp_path / "stage1_train" / f"{number:02}abc", number)
    data = load_set("nuclei", root=str(tmp_path / "stage1_train"), image_size=16)
    assert data.sites is None
    assert data.images[:, 0, 0, 0].tolist() == list(range(12))
    want = torch.zeros(12, 16, 16, dtype=torch.uint8)
    want[:, 2:8, 1:4], want[:, 3, 9:] = 1, 1
    assert data.masks is not None
    assert torch.equal(data.masks, want)


def test_sites_may_be_in_the_layout_of_dsb2018(tmp_path: Path) -> None:
    for number in range(24):
        publish(tmp_path / "set" / ("bright", "dark")[number % 2] / f"{number:02}abc", number)
    data = load_set("nuclei", root=str(tmp_path / "set"), image_size=16)
    assert data.site_names == ("bright", "dark")
    assert data.sites is not None
    assert data.sites.tolist() == [0] * 12 + [1] * 12
    assert data.images[12:, 0, 0, 0].tolist() == list(range(1, 24, 2))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda image: shutil.rmtree(image / "masks"),
            r"05abc/masks: found no such folder; expected <name>/images/<name>.png and <name>/masks/\*.png",
        ),
        (lambda image: shutil.rmtree(image / "images"), r"05abc/images: found no such folder; expected <name>/images"),
        (
            lambda image: [path.unlink() for path in (image / "masks").iterdir()],
            r"05abc: found 1 images and 0 masks; expected <name>/images",
        ),
        (
            lambda image: Image.fromarray(np.zeros((9, 9), np.uint8)).save(image / "masks/a.png"),
            r"05abc/masks/a.png: found a mask of 9 x 9 pixels; expected the size of its image, 16 x 16",
        ),
        (
            lambda image: Image.new("RGB", (16, 16)).save(image / "images/other.png"),
            r"05abc: found 2 images and 3 masks",
        ),
    ],
)
def test_a_spoilt_image_of_dsb2018_is_one_line(tmp_path: Path, spoil: Any, message: str) -> None:
    for number in range(12):
        publish(tmp_path / "set" / f"{number:02}abc", number)
    spoil(tmp_path / "set" / "05abc")
    with pytest.raises(UserError, match=message):
        load_set("nuclei", root=str(tmp_path / "set"), image_size=16)
