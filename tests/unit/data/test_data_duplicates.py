"""Near-duplicates: what is one picture for the groups, and that no copy crosses the packaged splits."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from scipy.spatial.distance import cdist  # type: ignore[import-untyped]  # scipy has no types

from fedsim.data.datasets.packaged import SLICE_DISTANCE
from fedsim.data.duplicates import near_duplicates, near_pairs, thumbnails
from tests.helpers import load_set
from tests.unit.data.pictures import make_pictures

Grey = npt.NDArray[np.float32]
COPIES = {
    "upright": lambda image: image,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "turned by 90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned by 180 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "turned by 270 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "transposed": lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    "transposed the other way": lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    "compressed again": lambda image: compressed(image),
    "mirrored and compressed again": lambda image: compressed(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "of another size": lambda image: image.resize((133, 111), Image.Resampling.BICUBIC),
    "brightened": lambda image: ImageEnhance.Brightness(image).enhance(1.4),
    "sharpened": lambda image: image.filter(ImageFilter.SHARPEN),
}


def compressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer)


def test_every_copy_falls_into_its_image_s_group_and_no_other_image_does() -> None:
    images = make_pictures(20)
    planted = [change(images[0]) for change in COPIES.values()]
    small = np.stack([thumbnails(image) for image in images + planted])
    clusters = near_duplicates(small, SLICE_DISTANCE)
    assert dict(zip(COPIES, clusters[20:] == clusters[0], strict=True)) == dict.fromkeys(COPIES, True)
    assert len(set(clusters[:20].tolist())) == 20


def test_noise_on_a_black_background_is_no_difference() -> None:
    rng = np.random.default_rng(0)
    clean = make_pictures(1)[0]
    pixels = np.asarray(clean)
    noisy = np.where(pixels == 0, rng.integers(0, 2, pixels.shape[:2])[..., None], pixels).astype(np.uint8)
    small = np.stack([thumbnails(clean), thumbnails(Image.fromarray(noisy))])
    assert len(set(near_duplicates(small, 0.02).tolist())) == 1


def test_near_duplicates_are_chained() -> None:
    small = np.zeros((4, 2, 16, 17), np.uint8)
    small[:, 0, :, 1::2] = 100  # 256 steps each
    small[1:, 0, :2] = 0  # 224 of them: 1 - 2 * 224 / 480 = 0.067 from the first
    small[2:, 0, :4] = 0  # 192: 0.143 from the first, 0.077 from the second
    small[3:, 0, :9] = 0  # 112: 0.263 from the third
    assert near_duplicates(small, 0.08).tolist() == [0, 0, 0, 1]
    assert near_duplicates(small, 0.07).tolist() == [0, 0, 1, 2]


def test_pairs_of_many_rows_are_those_of_each_row() -> None:
    small = np.stack([thumbnails(image) for image in make_pictures(3)])
    many = np.concatenate([small] * 100)
    found = np.concatenate([np.stack(pairs, 1) for pairs in near_pairs(many, small, 0.0)])
    assert found.tolist() == [[index, index % 3] for index in range(300)]


def boxes(pictures: Grey) -> Grey:
    """(N, M * 64): the means of 8 x 8 boxes, whose mean difference is never above that of the pixels."""
    num_images, num_pictures, side, _ = pictures.shape
    parted = pictures.reshape(num_images, num_pictures, 8, side // 8, 8, side // 8)
    return parted.mean((3, 5)).reshape(num_images, -1)


def copies(first: Grey, second: Grey, limit: float = 3.0) -> set[tuple[int, int]]:
    """Which of ``first`` (N, M, H, H) and ``second`` differ by less than ``limit`` of 255, in one of 8 orientations."""
    found = set()
    for mirrored in (second, second[..., ::-1]):
        for turns in range(4):
            turned = np.ascontiguousarray(np.rot90(mirrored, turns, (2, 3)))
            likely = np.argwhere(cdist(boxes(first), boxes(turned), "cityblock") / boxes(first).shape[1] < limit)
            found |= {(one, other) for one, other in likely if np.abs(first[one] - turned[other]).mean() < limit}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("max_train", [None, 800])
def test_no_test_or_validation_slice_has_a_copy_in_training(max_train: int | None) -> None:
    data = load_set("brain_mri", image_size=112, max_train=max_train)
    grey = data.images[:, :1].numpy().astype(np.float32)
    assert len(copies(grey[data.test], grey[data.test])) > 2 * len(data.test), "the criterion finds what is there"
    assert copies(grey[data.val], grey[data.train]) == set()
    assert copies(grey[data.test], grey[data.train]) == set()


def test_brain_mri_has_347_groups_of_one_class_each() -> None:
    data = load_set("brain_mri")
    pairs = set(zip(data.groups.tolist(), data.labels.tolist(), strict=True))
    assert len(pairs) == len(set(data.groups.tolist())) == 347
    assert np.bincount(data.groups).max() == 77


@pytest.mark.slow
def test_no_dermoscopy_pair_has_a_copy_in_another_lesion() -> None:
    """A copy's patches may be turned or mirrored, both alike, and may have changed places."""
    data = load_set("dermoscopy_pairs", image_size=64)
    pixels = data.images.numpy().astype(np.float32)
    left, right = (half.reshape(-1, 3, 32, 2, 32).mean(3) for half in (pixels[..., :32], pixels[..., 32:]))
    patches = np.concatenate([left, right], 1)
    found = copies(patches, patches) | copies(patches, np.concatenate([right, left], 1))
    assert len(found) > len(patches) + 50, "the criterion finds the copies within a lesion"
    assert {pair for pair in found if data.groups[pair[0]] != data.groups[pair[1]]} == set()
