"""Images and masks in folders per site, as the tests write them."""

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


TALL = np.ones((32, 24), np.uint8)
RGBA = np.full((24, 32, 4), 255, np.uint8)
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
        (put(RGBA, "TNBC/images/2.png"), r"images/2.png: found an alpha channel \(mode RGBA\); expected .*without one"),
        (
            put(RGBA, "TNBC/masks/2.png"),
            r"masks/2.png: found a mask of mode RGBA; expected one channel of whole numbers",
        ),
        (
            lambda root: (
                Image.fromarray(mask(np.uint16)).save((root / IMAGES[2]).with_suffix(".tif")) or delete(IMAGES[2])(root)
            ),
            r"images/2.tif: found pixels of mode I;16; expected an image with 8 bits per channel; convert it",
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
    words = "pixels of mode RGB, 16 bits" if colours == 3 else r"an alpha channel \(mode RGBA\)"
    with pytest.raises(UserError, match=rf"images/2.tif: found {words}; expected"):
        load_set("nuclei", root=str(root), image_size=16)
