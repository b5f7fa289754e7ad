"""The dermoscopic augmentations against the same change made pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.ndimage import affine_transform, convolve1d

from fedsim.data.augment import NUM_DRAWS, augment
from fedsim.data.augment_skin import normal_noise

BRIGHTNESS, BLUR, MOVE = 7, 9, 12  # first columns of the draws


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(9))


def draws(first: int, *values: float) -> torch.Tensor:
    """The same draws for six images: ``values`` from column ``first`` on, 1/2 elsewhere."""
    row = torch.full((6, NUM_DRAWS), 0.5)
    row[:, first : first + len(values)] = torch.tensor(values)
    return row


def test_vertical_flip(images: torch.Tensor) -> None:
    assert torch.equal(augment(images, ["vertical_flip"], draws(6, 0.49)), images.flip(2))
    assert torch.equal(augment(images, ["vertical_flip"], draws(6, 0.5)), images)


def test_brightness_adds_to_all_values(images: torch.Tensor) -> None:
    brighter = augment(images, ["brightness"], draws(BRIGHTNESS, 0.7, 0.75))
    torch.testing.assert_close(brighter, (images + 0.1).clamp(max=1))
    darker = augment(images, ["brightness"], draws(BRIGHTNESS, 0.0, 0.0))
    torch.testing.assert_close(darker, (images - 0.2).clamp(min=0))
    assert torch.equal(augment(images, ["brightness"], draws(BRIGHTNESS, 0.75, 0.0)), images)


@pytest.mark.parametrize(("amount", "side"), [(0.0, 3), (0.49, 3), (0.5, 5)])
def test_median_is_that_of_pillow_inside(amount: float, side: int) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    want = np.asarray(Image.fromarray(grey).filter(ImageFilter.MedianFilter(side)))
    image = torch.from_numpy(grey / 255.0).float().expand(6, 3, 16, 16)
    found = augment(image, ["blur_or_noise"], draws(BLUR, 0.1, amount))[0, 1] * 255
    inside = slice(2, -2)
    np.testing.assert_allclose(found.numpy()[inside, inside], want[inside, inside], atol=1e-3)


@pytest.mark.parametrize(("amount", "line"), [(0.32, (1, 2, 1)), (0.34, (1, 4, 6, 4, 1)), (0.99, (1, 4, 6, 4, 1))])
def test_gaussian_weighs_binomially_and_reflects(images: torch.Tensor, amount: float, line: tuple[int, ...]) -> None:
    weights = np.array(line) / sum(line)
    want = images.numpy()
    for axis in (2, 3):
        want = convolve1d(want, weights, axis=axis, mode="mirror")
    found = augment(images, ["blur_or_noise"], draws(BLUR, 0.3, amount))
    np.testing.assert_allclose(found.numpy(), want, atol=1e-6)


def test_noise_has_the_variance_that_was_drawn() -> None:
    grey = torch.full((6, 3, 64, 64), 0.5)
    table = draws(BLUR, 0.6, 0.4)
    table[:, BLUR + 2] = torch.linspace(0.1, 0.6, 6)
    noise = (augment(grey, ["blur_or_noise"], table) - 0.5) * 255
    assert noise.var().item() == pytest.approx(5 + 25 * 0.4, rel=0.03)
    assert abs(noise.mean().item()) < 0.1
    assert torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max() < 0.04


def test_every_share_is_met() -> None:
    """Of many images 0.7 are blurred or noisy, each way for a third of them."""
    row = draws(BLUR, 0.0)[:1].repeat(700, 1)
    row[:, BLUR] = torch.linspace(0, 0.9999, 700)
    dots = torch.zeros(700, 1, 8, 8)
    dots[:, :, 4, 4] = 1.0
    found = augment(dots, ["blur_or_noise"], row).flatten(1)
    changed = (found != dots.flatten(1)).any(1)
    assert changed.sum().item() == pytest.approx(490, abs=1)
    median, gaussian = (found == 0).all(1), ((found > 0.1) & (found < 0.9)).any(1)
    assert [median.sum().item(), gaussian.sum().item()] == pytest.approx([490 / 3, 490 / 3], abs=1)


@pytest.mark.parametrize("down", [0.5, 0.9])
@pytest.mark.parametrize("angle", [0.5, 0.0, 0.8])
@pytest.mark.parametrize("size", [0.5, 1.0])
def test_a_move_is_scipys(images: torch.Tensor, angle: float, size: float, down: float) -> None:
    right = 0.25
    found = augment(images, ["shift_scale_rotate"], draws(MOVE, 0.8, angle, size, down, right))[0, 0].numpy()
    turn, scale = math.radians(15) * (2 * angle - 1), 0.9 + 0.2 * size
    # Rows and columns of the result to those of the source, around the centre; positive turns go counter-clockwise.
    back = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]) / scale
    centre, shift = np.array([7.5, 7.5]), 1.6 * np.array([2 * down - 1, 2 * right - 1])
    want = affine_transform(
        np.pad(images[0, 0].numpy(), 8), back, centre + 8 - back @ (centre + 8 + shift), order=1, mode="constant"
    )
    np.testing.assert_allclose(found, want[8:-8, 8:-8], atol=2e-5)


def test_without_a_move_the_image_stays(images: torch.Tensor) -> None:
    assert torch.equal(augment(images, ["shift_scale_rotate"], draws(MOVE, 0.85, 0.0, 0.0)), images)
    still = augment(images, ["shift_scale_rotate"], draws(MOVE, 0.0, 0.5, 0.5, 0.5, 0.5))
    torch.testing.assert_close(still, images, atol=1e-5, rtol=0)


def test_noise_is_normal_and_follows_the_draw() -> None:
    shape = torch.Size((3, 32, 32))
    numbers = normal_noise(torch.rand(40, generator=torch.Generator().manual_seed(1)), shape)
    assert numbers.shape == (40, *shape)
    moments = [numbers.pow(power).mean().item() for power in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.06)
    assert torch.equal(normal_noise(torch.tensor([0.3]), shape), normal_noise(torch.tensor([0.3, 0.7]), shape)[:1])
