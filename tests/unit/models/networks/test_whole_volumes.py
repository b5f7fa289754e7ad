"""Networks of MONAI's in three dimensions: a volume goes through whole, alone or in a block of clients."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.build import Parts, assemble
from fedsim.comm.group import open_group
from fedsim.config.words import ModelConfig
from fedsim.data import ClientImages
from fedsim.errors import UserError
from fedsim.models.build import build_models
from fedsim.models.encoders import Encoder, library_model
from fedsim.models.outside.network import Scoring, features_line, trained_network
from fedsim.models.outside.recipes import build_lines
from fedsim.models.stacked import StackedModel
from fedsim.simulation import Simulation
from tests.helpers import IMAGE_SIZE, everything, furthest, make_config, make_volumes, play

CPU = torch.device("cpu")
NAMES = ["a", "b", "c"]
SLICES = 6
SIZES = [12, 6, 8]
RESNET: dict[str, Any] = {"name": "monai:resnet18_3d", "weights": "random", "options": {"widen_factor": 0.0625}}
DENSENET: dict[str, Any] = {
    "name": "monai:densenet121_3d",
    "weights": "random",
    "options": {"init_features": 8, "growth_rate": 4, "block_config": [1, 1]},
}

# Of vmap, under which pooling in three dimensions is not batched.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def build(words: dict[str, Any], slices: int | None = SLICES) -> StackedModel:
    return build_models(make_config(model=words).model, IMAGE_SIZE, NAMES, 0, CPU, slices)[0]


def simulate_volumes(per_block: int, model: StackedModel | None = None) -> Simulation:
    dataset, parts = make_volumes(SIZES, SLICES)
    clients = {"count": len(SIZES), "per_block": per_block}
    config = make_config(model=RESNET, clients=clients, train={"batch_size": 4, "lr": 0.01})
    built = model or build(RESNET)
    return assemble(config, open_group(), Parts(dataset, ClientImages.of(parts), built, built))


def pixels_of(count: int) -> Tensor:
    """Grey volumes: three equal channels."""
    stream = torch.Generator().manual_seed(1)
    return torch.rand(count, SLICES, 1, IMAGE_SIZE, IMAGE_SIZE, generator=stream).expand(-1, -1, 3, -1, -1)


@pytest.mark.parametrize("words", [RESNET, DENSENET], ids=["resnet", "densenet"])
def test_features_are_the_librarys_of_the_whole_volume(words: dict[str, Any]) -> None:
    model = build(words)
    net = library_model(ModelConfig.model_validate(words), IMAGE_SIZE, 0).eval()
    assert any(isinstance(part, nn.Conv3d) for part in net.modules())
    pixels = pixels_of(3)
    found = model.features(model.initial(0), model.prefix(pixels)[None], training=False)
    with torch.no_grad():
        expected = net((pixels[:, None, :, 0] - 0.5) / 0.5)
    assert expected.shape == (3, model.width)
    torch.testing.assert_close(found[0], expected)
    other = model.features(model.initial(0), model.prefix(pixels.flip(1))[None], training=False)
    assert (found - other).abs().max() > 1e-3 * found.abs().max()  # the order of slices is seen


def test_stacked_is_sequential() -> None:
    sims = []
    for per_block in (1, len(SIZES)):
        model = build(RESNET)
        start = model.initial(0)
        model.net.double()  # BatchNorm over a handful of values makes much of float32's rounding
        model._mean = model._mean.double()
        vars(model)["initial"] = lambda _, start=start: {
            name: value.double() if value.is_floating_point() else value for name, value in start.items()
        }
        sims.append(simulate_volumes(per_block, model))
    alone, together = (play(sim, 1)[0] for sim in sims)
    assert furthest(everything(sims[1], together), everything(sims[0], alone)) < (1e-5, "")


def test_the_network_taken_out_scores_as_the_run_does() -> None:
    sim = simulate_volumes(3)
    end, _ = play(sim, 1)
    params = end.params
    scoring = Scoring(sim.model, params, NAMES, trained_network(sim.model, params, NAMES)).eval()
    pixels = pixels_of(4)
    with torch.no_grad():
        expected = sim.model.forward(params, sim.model.prefix(pixels)[None], training=False)[0]
        found = scoring(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("words", [RESNET, DENSENET], ids=["resnet", "densenet"])
def test_the_cards_lines_make_the_network(words: dict[str, Any]) -> None:
    model = build(words)
    params = model.initial(0)
    trained = trained_network(model, params, NAMES)
    names: dict[str, Any] = {}
    exec("\n".join(build_lines(model.config, trained, IMAGE_SIZE, NAMES)), names)
    names["model"].load_state_dict(trained.state_dict())
    pixels = pixels_of(2)
    with torch.no_grad():
        found = eval(features_line(model.config, model.encoder), {"model": names["model"].eval(), "images": pixels})
        torch.testing.assert_close(found, trained(pixels[:, None, :, 0]))


@pytest.mark.parametrize(
    ("words", "slices", "message"),
    [
        (
            RESNET,
            None,
            r"model.name: found monai:resnet18_3d.*with a set of images or texts; expected a set of volumes",
        ),
        (DENSENET, 2, r"data.slices 2: found RuntimeError.*; expected options that it takes, and volumes"),
        ({**RESNET, "options": {"dropout_rate": 0.1}}, 4, r"model.options of monai:resnet18_3d.*dropout_rate"),
        ({**RESNET, "options": {"feed_forward": True}}, 4, r"model.options of monai:resnet18_3d.*feed_forward"),
        ({**RESNET, "options": {"widen": 2}}, 4, r"model.options of monai:resnet18_3d.*widen"),
    ],
)
def test_what_does_not_fit_is_refused(words: dict[str, Any], slices: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(words, slices)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lora": {"r": 2}}, "LoRA on monai:resnet18_3d"),
        ({"amplitude_norm": {}}, "only images have amplitudes"),
        ({"weights": None}, "random: it has no others"),
    ],
)
def test_what_it_cannot_have_is_refused_by_its_key(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelConfig.model_validate({**RESNET, **more})


def test_a_network_of_ones_own_may_take_whole_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
from torch import nn
from fedsim.models.encoders import Encoder
def make(config, image_size):
    net = nn.Sequential(nn.Conv3d(1, 5, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    return Encoder(net, 5, (0.5,) * 3, (0.5,) * 3, image_size, whole_volumes=True)
"""
    (tmp_path / "own_volumes.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    model = build({"name": "own_volumes.make", "train": "all"})
    assert isinstance(model.encoder, Encoder)
    assert model.features(model.initial(0), model.prefix(pixels_of(2))[None], training=False).shape == (1, 2, 5)
