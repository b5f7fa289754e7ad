"""The normalisation of HarmoFL's networks against the released one (harmofl_fedavg.npz, ``harmofl_bn``)."""

import pytest
import torch
from torch import nn

from fedsim.models.networks.unet import without_statistics
from tests.golden.clip import load, load_words

GOLDEN, WORDS = load("harmofl_fedavg"), load_words("harmofl_fedavg")
TOLERANCE = 1e-6


@pytest.mark.parametrize("form", ["paper", "released"])
def test_normalisation_over_the_batch(form: str) -> None:
    images = GOLDEN["harmofl_bn/in"]
    net = without_statistics(nn.Sequential(nn.BatchNorm2d(images.shape[1])), form)  # type: ignore[arg-type]  # a literal
    assert list(net.state_dict()) == [name for name in WORDS["harmofl_bn/state_keys"] if name] == []
    torch.testing.assert_close(net.train()(images), GOLDEN["harmofl_bn/out_train"], rtol=TOLERANCE, atol=TOLERANCE)
    # Only the released one looks at the batch in evaluation; the other takes each image as a batch of its own.
    expected = [GOLDEN["harmofl_bn/out_eval"]] if form == "released" else [net.train()(image[None]) for image in images]
    torch.testing.assert_close(net.eval()(images), torch.cat(expected), rtol=TOLERANCE, atol=TOLERANCE)
