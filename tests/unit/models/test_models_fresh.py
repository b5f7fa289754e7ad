"""Networks with random weights: MONAI's, HarmoFL's normalisation without statistics, and what they refuse."""

from typing import Any

import pytest
import torch
from torch import nn

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.build import stack
from fedsim.models.encoders import Encoder, load_encoder
from fedsim.models.networks.unet import UNet, without_statistics

SMALL_UNET = {"channels": [4, 8], "strides": [2]}
SMALL_DENSENET = {"init_features": 8, "growth_rate": 4, "block_config": [1, 1, 1, 1]}


def encoder_of(name: str, side: int = 32, seed: int = 0, **options: Any) -> Encoder:
    words = {"name": name, "weights": "random", "options": options}
    return load_encoder(ModelConfig.model_validate(words), side, ("background", "cell", "debris"), seed)


@pytest.mark.parametrize(
    ("name", "options"), [("monai:unet", SMALL_UNET), ("monai:unet", {}), ("fedsim:harmofl_unet", {"num_features": 2})]
)
def test_a_unet_scores_every_pixel(name: str, options: dict[str, Any]) -> None:
    encoder = encoder_of(name, **options)
    assert encoder.per_pixel
    assert encoder.net(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": "a"}, r"channels: found 'a'; expected a list of whole numbers above 0"),
        ({"strides": ["2", "2", "2"]}, r"strides: found \['2', '2', '2'\]; expected a list of whole"),
        ({"strides": [2, 0, 2]}, r"strides: found \[2, 0, 2\]; expected a list of whole"),
        ({"channels": True}, r"channels: found true; expected"),
        ({"strides": [2, 2, 2, 2]}, r"strides: found 4 channels and 4 strides; expected two channels or more, and a"),
        ({"channels": [4], "strides": []}, r"strides: found 1 channels and 0 strides; expected"),
    ],
)
def test_a_unet_without_levels_is_refused_by_its_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.options\.{message}"):
        encoder_of("monai:unet", **options)


@pytest.mark.parametrize("name", ["monai:densenet121", "fedsim:harmofl_densenet121"])
def test_densenet_gives_features(name: str) -> None:
    encoder = encoder_of(name, 64, **SMALL_DENSENET)
    assert not encoder.per_pixel
    assert encoder.net(torch.rand(2, 3, 64, 64)).shape == (2, encoder.width)
    assert not any(isinstance(part, nn.Dropout) and part.p for part in encoder.net.modules())


def test_weights_follow_from_the_seed() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (encoder_of("fedsim:harmofl_unet", seed=seed, num_features=2).net for seed in (3, 3, 4))
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one(images), same(images))
    assert not torch.equal(one(images), other(images))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_evaluation_depends_on_the_batch_in_the_released_form_alone(form: str) -> None:
    net = encoder_of("fedsim:harmofl_unet", num_features=2, form=form).net
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together, alone = net.eval()(images), torch.cat([net(image[None]) for image in images])
        assert torch.allclose(together, alone, atol=1e-5) == (form == "paper")
        # In training both normalise over the batch.
        assert not torch.allclose(net.train()(images), alone, atol=1e-2)
    assert not list(net.buffers())
    assert {name.rpartition(".")[2] for name, _ in net.named_parameters()} == {"weight", "bias"}


def test_the_widths_are_the_publisheds() -> None:
    """With 32 features, two 3 x 3 convolutions a level up to 512, and back."""
    levels = [(3, 32), (32, 64), (64, 128), (128, 256), (256, 512)]
    down = sum(9 * (before * width + width * width) for before, width in levels)
    up = sum(4 * 2 * width * width + width + 9 * (2 * width + width) * width for width in (256, 128, 64, 32))
    net = without_statistics(UNet(32, 2), "paper")
    assert sum(value.numel() for value in net.parameters()) == down + up + 2 * 32 + 2


def test_kinds_of_parameters() -> None:
    """FedBN's norms and buffers are found in MONAI's U-Net; there is no head beside it."""
    words = {"name": "monai:unet", "weights": "random", "options": {**SMALL_UNET, "norm": "batch"}}
    config = ModelConfig.model_validate(words)
    model = stack(config, load_encoder(config, 32, ("a", "b"), 0), 2, torch.device("cpu"))
    kinds = {spec.kind for spec in model.specs.values()}
    assert kinds == {"body", "norm", "buffer"}
    assert all(".N." in name for name, spec in model.specs.items() if spec.kind == "norm")


@pytest.mark.parametrize(
    ("name", "options", "side", "message"),
    [
        ("monai:unet", {"chanels": [4, 8]}, 32, "chanels"),
        ("monai:unet", {"dropout": 0.1}, 32, "dropout"),
        ("monai:unet", SMALL_UNET, 33, "data.image_size 33"),
        ("fedsim:harmofl_unet", {"form": "relased"}, 32, "relased"),
        ("fedsim:harmofl_unet", {"num_features": 2}, 40, "data.image_size 40"),
        ("fedsim:harmofl_densenet121", SMALL_DENSENET, 16, "data.image_size 16"),
    ],
)
def test_what_they_refuse(name: str, options: dict[str, Any], side: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        encoder_of(name, side, **options)
    line = str(caught.value)
    assert message in line
    assert line.startswith(f"model.options of {name}")
    assert "\n" not in line
