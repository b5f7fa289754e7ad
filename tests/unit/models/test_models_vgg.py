"""The slim VGG16: its shape as released, with and without a bias, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.build import build_simulation, check_batches
from fedsim.comm.group import open_group
from fedsim.config.experiment import Config
from fedsim.config.mistakes import KeyedError
from fedsim.config.words import ModelConfig
from fedsim.data import load_dataset
from fedsim.errors import UserError
from fedsim.models.build import build_models
from fedsim.models.stacked import StackedModel
from fedsim.models.whole_net import WholeNet
from fedsim.schedule.cohort import draw_cohort
from tests.helpers import make_config

NAMES = ("nevus", "benign keratosis", "melanoma")


def model_words(name: str = "fedsim:vgg16_slim", **changes: Any) -> dict[str, Any]:
    return {"name": name, "weights": "random", "train": "all", **changes}


def build(name: str = "fedsim:vgg16_slim", image_size: int = 32, seed: int = 0) -> StackedModel:
    config = ModelConfig.model_validate(model_words(name))
    return build_models(config, image_size, NAMES, seed, torch.device("cpu"))[0]


def test_layers_are_those_of_the_release() -> None:
    """Thirteen convolutions in five stages and one linear layer, each with BatchNorm, pooled to one pixel."""
    model = build()
    shapes = {name: spec.shape for name, spec in model.specs.items() if name.endswith((".conv.weight", "r.weight"))}
    outputs = [shape[0] for name, shape in shapes.items() if ".conv." in name]
    assert outputs == [32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256, 256]
    inputs = [shape[1] for name, shape in shapes.items() if ".conv." in name]
    assert inputs == [3, *outputs[:-1]]
    assert shapes["net.fc1.linear.weight"] == (64, 256)
    assert model.specs["head.weight"].shape == (3, 64)
    norms = [name for name in model.specs if name.endswith(".bn.running_mean")]
    assert len(norms) == 14


@pytest.mark.parametrize(("name", "biases"), [("fedsim:vgg16_slim", []), ("fedsim:vgg16_slim_biased", ["head.bias"])])
def test_only_the_biased_form_has_a_bias(name: str, biases: list[str]) -> None:
    model = build(name)
    assert [key for key in model.specs if key.endswith("bias") and ".bn." not in key] == biases
    params = model.initial(0)
    for key in biases:
        params[key] += 5.0
    images = torch.rand(4, 3, 32, 32)
    scores = model.forward(params, model.prefix(images)[None], training=False)[0]
    features = model.net(images * 2 - 1)
    torch.testing.assert_close(scores, features @ params["head.weight"].T + 5.0 * len(biases))


def test_forward_is_the_network_layer_by_layer() -> None:
    model = build(image_size=40)
    layers = [part for part in model.net.modules() if not list(part.children())]
    images = torch.rand(2, 3, 40, 40)
    values = images * 2 - 1
    for layer in layers:
        values = layer(values.mean((2, 3)) if isinstance(layer, nn.Linear) else values)
    torch.testing.assert_close(model.net(model.prefix(images)), values)


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (build(seed=seed).initial(0)["net.fc1.linear.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("weights", [None, "own.safetensors"])
def test_other_weights_than_random_are_refused(weights: str | None) -> None:
    with pytest.raises((ValueError, KeyedError), match="with fedsim:vgg16_slim"):
        ModelConfig.model_validate(model_words(weights=weights))


def test_images_that_the_poolings_would_use_up_are_refused() -> None:
    with pytest.raises(UserError, match=r"data.image_size: found 31 with the slim VGG16; expected at least 32"):
        build(image_size=31)


def vgg_config(batch_size: int, model: dict[str, Any] | None = None) -> Config:
    return make_config(model=model or model_words(), data={"image_size": 32}, train={"batch_size": batch_size})


@pytest.mark.parametrize(("batch_size", "sizes"), [(16, [5, 17]), (1, [4]), (16, [1])])
def test_a_batch_of_one_image_is_refused_before_training(batch_size: int, sizes: list[int]) -> None:
    parts = [np.arange(size) for size in sizes]
    with pytest.raises(UserError, match=rf"client {len(sizes) - 1} with its {sizes[-1]} images a batch of one"):
        check_batches(vgg_config(batch_size), build(), parts)


def test_clients_too_small_for_batchnorm_can_be_left_out(tmp_path: Path) -> None:
    """A run whose second client has one image: refused as it is, and run without that client."""
    words = {"count": 2, "partition": {"name": "file", "path": str(tmp_path / "clients.json")}}
    data = {"name": "digits", "image_size": 32}
    dataset = load_dataset(make_config(data=data).data)
    first = dataset.train[:5].tolist()
    (tmp_path / "clients.json").write_text(json.dumps({"clients": [first[:4], first[4:]]}))
    with open_group() as group:
        config = make_config(model=model_words(), data=data, clients=words)
        with pytest.raises(
            UserError, match=r"client 1 with its 1 images .* clients.min_samples leaves small clients out"
        ):
            build_simulation(config, group)
        config = make_config(model=model_words(), data=data, clients={**words, "min_samples": 2})
        sim = build_simulation(config, group)
    assert list(sim.sizes) == [4, 0]
    assert draw_cohort(config.clients, config.train, sim.sizes, 0, 1).clients == (0,)


def test_batches_of_one_are_fine_where_no_layer_minds_them() -> None:
    """A head alone trains without BatchNorm, and larger maps have values enough in one image."""
    parts = [np.arange(17), np.arange(0)]
    head = vgg_config(16, model_words(train="head"))
    check_batches(head, build_models(head.model, 32, NAMES, 0, torch.device("cpu"))[0], parts)
    check_batches(vgg_config(16), build(), [np.arange(32), np.arange(18), np.arange(0)])
    words = {"name": "timm:test_resnet", "weights": "random", "train": "all"}
    resnet, _ = build_models(ModelConfig.model_validate(words), 64, NAMES, 0, torch.device("cpu"))
    assert isinstance(resnet, WholeNet)
    before = {name: value.clone() for name, value in resnet.net.state_dict().items()}
    assert not resnet.normalises_over_batch(64)
    assert resnet.normalises_over_batch(32), "its last map is one pixel then"
    assert all(torch.equal(value, before[name]) for name, value in resnet.net.state_dict().items())
    check_batches(make_config(model=words, data={"image_size": 64}, train={"batch_size": 16}), resnet, parts)


CNNS = ("fedsim:vgg16_slim", "timm:test_resnet", "timm:test_efficientnet", "timm:test_convnext", "timm:test_nfnet")


@pytest.mark.parametrize("name", CNNS)
def test_a_block_of_whole_networks_is_its_clients_one_by_one(name: str) -> None:
    """Scores, gradients and running statistics of three clients, in float64."""
    model = build(name, image_size=64)
    model.net.double()
    start = {key: value.double() if value.is_floating_point() else value for key, value in model.initial(0).items()}
    stream = torch.Generator().manual_seed(3)
    pixels = torch.rand(3, 4, 3, 64, 64, generator=stream, dtype=torch.float64)

    def train(rows: slice) -> tuple[torch.Tensor, list[torch.Tensor], dict[str, torch.Tensor]]:
        params = {key: torch.stack([value, value * 1.1, value * 0.9])[rows].clone() for key, value in start.items()}
        leaves = {key: params[key].requires_grad_() for key, spec in model.specs.items() if spec.kind != "buffer"}
        params.update({key: params[key].to(start[key].dtype) for key in params if key not in leaves})
        scores = model.forward(params, pixels[rows], training=True)
        grads = torch.autograd.grad(scores.square().sum(), list(leaves.values()))
        return scores, list(grads), {key: params[key] for key in params if key not in leaves}

    together, grads, statistics = train(slice(0, 3))
    assert together.grad_fn is not None
    for row in range(3):
        scores, own_grads, own_statistics = train(slice(row, row + 1))
        torch.testing.assert_close(together[row], scores[0])
        for found, want in zip(grads, own_grads, strict=True):
            torch.testing.assert_close(found[row], want[0], rtol=1e-8, atol=1e-10)
        for key, want in own_statistics.items():
            torch.testing.assert_close(statistics[key][row], want[0])
    assert any(key.endswith("running_mean") for key in statistics) == (name not in CNNS[-2:])
