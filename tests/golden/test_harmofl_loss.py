"""Segmentation losses and the Dice coefficient against HarmoFL's released code (harmofl_loss.npz)."""

import pytest
import torch

from fedsim.tasks.segmentation import Segmentation
from tests.golden.clip import load

GOLDEN = load("harmofl_loss")
CASES = sorted({name.split("/")[0] for name in GOLDEN})
TOLERANCE = 1e-6


def task(num_classes: int, **words: str) -> Segmentation:
    return Segmentation(tuple(str(label) for label in range(num_classes)), **words)  # type: ignore[arg-type]  # literals


@pytest.mark.parametrize("loss", ["dice", "joint"])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(case: str, loss: str) -> None:
    outputs = GOLDEN[f"{case}/pred"][None].requires_grad_()
    masks = GOLDEN[f"{case}/gt"].transpose(0, 1)
    weights = torch.full(masks.shape[:2], 1 / masks.shape[1])
    criterion = {"dice": "dice", "joint": "dice_ce"}[loss]
    (found,) = task(outputs.shape[2], criterion=criterion).loss(outputs, masks, weights)
    # The release takes a term for smoothing ("dice_loss_smooth100") and does not look at it.
    for name in (name for name in GOLDEN if name.startswith(f"{case}/{loss}_loss")):
        torch.testing.assert_close(found.detach(), GOLDEN[name], rtol=TOLERANCE, atol=TOLERANCE)
    (gradient,) = torch.autograd.grad(found, outputs)
    torch.testing.assert_close(gradient[0], GOLDEN[f"{case}/{loss}_grad"], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_dice_coefficient(case: str) -> None:
    """The release counts 0 for a class that an image lacks, and adds 1e-5 to a sum of pixels: 1e-6 of 10 of them."""
    outputs, masks = GOLDEN[f"{case}/pred"], GOLDEN[f"{case}/gt"][:, 0]
    zero, skip = (task(outputs.shape[1], absent_class=word) for word in ("zero", "skip"))
    labels = torch.zeros(len(masks), dtype=torch.int64)
    found = zero.measure(zero.rows(outputs, masks), labels)["dice_all"]
    assert found == pytest.approx(GOLDEN[f"{case}/dice_coef"].item(), rel=1e-5)
    assert skip.measure(skip.rows(outputs, masks), labels)["dice_all"] >= found
