"""Augmentations against the same change made image by image."""

import pytest
import torch

from fedsim.data.augment import AUGMENTATIONS, MOVES, NUM_DRAWS, augment, augment_masks


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def images() -> torch.Tensor:
    return random(40, 3, 16, 16, seed=9)


@pytest.fixture
def draws() -> torch.Tensor:
    return random(40, NUM_DRAWS)


def test_flip_mirrors_the_images_that_drew_below_a_half(images: torch.Tensor, draws: torch.Tensor) -> None:
    result = augment(images, ["flip"], draws)
    mirrored = draws[:, 0] < 0.5
    assert 10 < mirrored.sum() < 30
    for before, after, is_mirrored in zip(images, result, mirrored, strict=True):
        torch.testing.assert_close(after, before.flip(2) if is_mirrored else before, rtol=0, atol=0)


def test_rotate90_turns_each_image_by_its_own_angle(images: torch.Tensor, draws: torch.Tensor) -> None:
    result = augment(images, ["rotate90"], draws)
    turns = (draws[:, 1] * 4).long().tolist()
    assert set(turns) == {0, 1, 2, 3}
    for before, after, turn in zip(images, result, turns, strict=True):
        torch.testing.assert_close(after, before.rot90(turn, (1, 2)), rtol=0, atol=0)


def test_crop_moves_by_up_to_an_eighth_and_repeats_the_border(images: torch.Tensor, draws: torch.Tensor) -> None:
    result = augment(images, ["crop"], draws)
    down, right = (draws[:, 2:4] * 5).long().T.tolist()
    assert {0, 4} <= set(down), "both ends are reached"
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    for index in range(40):
        want = padded[index, :, down[index] : down[index] + 16, right[index] : right[index] + 16]
        torch.testing.assert_close(result[index], want, rtol=0, atol=0)


def test_color_scales_brightness_and_contrast(draws: torch.Tensor) -> None:
    brightness, contrast = (0.8 + 0.4 * draws[:, 4:6]).T
    grey = torch.full((40, 3, 8, 8), 0.5)
    torch.testing.assert_close(augment(grey, ["color"], draws)[:, 1, 2, 3], 0.5 * brightness)
    images = 0.4 + 0.2 * random(40, 3, 8, 8, seed=1)  # so that nothing is cut off
    result = augment(images, ["color"], draws)
    torch.testing.assert_close(result.mean((1, 2, 3)), images.mean((1, 2, 3)) * brightness)
    torch.testing.assert_close(result.std((1, 2, 3)), images.std((1, 2, 3)) * brightness * contrast)


def test_color_stays_in_range(images: torch.Tensor) -> None:
    result = augment(images, ["color"], torch.full((40, NUM_DRAWS), 0.999))
    assert result.min() == 0
    assert result.max() == 1


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_an_image_depends_on_its_own_draws_alone(images: torch.Tensor, draws: torch.Tensor, name: str) -> None:
    before = images.clone()
    result = augment(images, [name], draws)
    torch.testing.assert_close(images, before, rtol=0, atol=0)
    assert result.shape == images.shape
    assert result.dtype == images.dtype
    other = augment(images, [name], torch.cat([draws[:1], random(39, NUM_DRAWS, seed=3)]))
    torch.testing.assert_close(other[0], result[0], rtol=0, atol=0)
    assert not torch.equal(other, result)


def test_changes_are_made_in_the_order_of_their_names(images: torch.Tensor, draws: torch.Tensor) -> None:
    want = augment(augment(images, ["crop"], draws), ["flip"], draws)
    assert torch.equal(augment(images, ["crop", "flip"], draws), want)
    assert augment(images, [], draws) is images


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_a_mask_moves_with_its_image_and_has_no_intensity(draws: torch.Tensor, name: str) -> None:
    """Discs of three classes: where the moved image is black or white, the moved mask is 0 or the class."""
    down, right = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = ((down - 20) ** 2 + (right - 40) ** 2 < 15**2).to(torch.uint8).expand(40, 64, 64)
    classes = (torch.arange(40, dtype=torch.uint8) % 3 + 1).view(-1, 1, 1)
    moved = augment_masks(disc * classes, [name], draws)
    assert moved.dtype == torch.uint8
    assert torch.equal(moved, disc * classes) == (name not in MOVES)
    if name in MOVES:
        found = augment(disc[:, None].float(), [name], draws)[:, 0]
        clear = (found - 0.5).abs() > 0.49
        assert clear.float().mean() > 0.95
        assert torch.equal(moved[clear], (found.round().to(torch.uint8) * classes)[clear])
        assert ((moved == 0) | (moved == classes)).all(), "no class between two others"


def test_masks_and_images_go_through_several_changes_alike(draws: torch.Tensor) -> None:
    names = ["rotate90", "color", "crop", "blur_or_noise", "vertical_flip", "flip"]
    masks = (random(40, 16, 16, seed=4) * 5).to(torch.uint8)
    moves = [name for name in names if name in MOVES]
    images = augment(masks[:, None].float(), moves, draws)[:, 0]
    assert torch.equal(augment_masks(masks, names, draws).float(), images)
    assert torch.equal(augment_masks(masks.long(), names, draws).float(), images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_makes_the_same_changes(images: torch.Tensor, draws: torch.Tensor) -> None:
    names = ["flip", "rotate90", "crop", "color"]
    on_gpu = augment(images.cuda(), names, draws.cuda())
    torch.testing.assert_close(on_gpu.cpu(), augment(images, names, draws))
