"""LoRA on encoders of all kinds: clients in one batch are clients alone, and the export is the library's own model."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fedsim.catalogue.functions import is_import_path
from fedsim.errors import UserError
from fedsim.models.any.net import LibraryNet
from fedsim.models.any.tuned_net import TunedNet
from fedsim.models.build import build_models
from fedsim.models.encoders import library_model
from fedsim.models.export import export_peft
from tests.helpers import furthest
from tests.unit.models.any.networks_any import (
    CLASSES,
    CLIENTS,
    DEEP,
    IMAGES,
    TINY,
    build,
    drawn_images,
    drawn_params,
    mixed,
    timm,
)

CASES = [(name, target) for name, tiny in TINY.items() for target in tiny.targets]


def graded(model: TunedNet, params: dict[str, Tensor], fixed: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The class scores, and the gradient of a sum that weighs each of them."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    scores = model.forward(leaves, fixed, training=True)
    weights = torch.randn(scores.shape[1:], generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad((scores * weights).sum(), list(leaves.values()))
    return scores.detach(), dict(zip(leaves, grads, strict=True))


@pytest.mark.parametrize(("name", "target"), CASES, ids=str)
def test_a_block_of_clients_is_each_client_alone(tmp_path: Path, name: str, target: tuple[str, ...]) -> None:
    tiny = TINY[name]
    model = build(tiny.config(tmp_path / "model", target), tiny.size)
    params = drawn_params(model, CLIENTS)
    fixed = model.prefix(drawn_images(tiny.size, CLIENTS * IMAGES)).unflatten(0, (CLIENTS, IMAGES))
    together, grads = graded(model, params, fixed)
    for client in range(CLIENTS):
        own = {name: value[client : client + 1] for name, value in params.items()}
        alone, expected = graded(model, own, fixed[client : client + 1])
        mine = {name: value[client : client + 1] for name, value in grads.items()}
        assert furthest({"": together[client : client + 1]}, {"": alone})[0] < 1e-5
        assert furthest(mine, expected)[0] < 1e-5
        # Without a client axis, as the server's parameters have none.
        plain = model.forward(
            {name: value[client] for name, value in params.items()}, fixed[client : client + 1], training=False
        )
        assert furthest({"": plain}, {"": alone})[0] < 1e-5
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
@pytest.mark.filterwarnings("error::UserWarning:peft")  # peft warns of missing or unknown factors
@pytest.mark.parametrize(("name", "target"), CASES, ids=str)
def test_the_adapter_on_the_librarys_own_model_gives_the_same_scores(
    tmp_path: Path, name: str, target: tuple[str, ...]
) -> None:
    tiny = TINY[name]
    model = build(tiny.config(tmp_path / "model", target), tiny.size)
    params = {name: value[0] for name, value in drawn_params(model, 1).items()}
    found, expected = scores_of_adapter(tmp_path, model, params)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    untouched = {name: torch.zeros_like(value) if "lora_b" in name else value for name, value in params.items()}
    assert (scores_of_adapter(tmp_path, model, untouched)[1] - expected).abs().max() > 1e-3


@pytest.mark.filterwarnings("error::UserWarning:peft")
def test_all_linear_layers_of_a_plain_transformer(tmp_path: Path) -> None:
    tiny = timm("vit_tiny_patch16_224", 32, (), **DEEP)
    model, _ = build_models(tiny.config(tmp_path, ("all-linear",)), 32, CLASSES, 4, torch.device("cpu"))
    params = {name: value[0] for name, value in drawn_params(model, 1).items()}
    assert len(params) == 2 * 4 * 2 + 2
    assert params["blocks.0.attn.qkv.lora_a"].shape[0] == 3
    found, expected = scores_of_adapter(tmp_path, model, params)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"found fc1 beside all-linear; expected all-linear alone"):
        build_models(tiny.config(tmp_path, ("all-linear", "fc1")), 32, CLASSES, 4, torch.device("cpu"))


def scores_of_adapter(folder: Path, model: Any, params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The scores that the exported adapter's README has for some images, and those of the model."""
    config, size = model.config, model.encoder.image_size
    images = drawn_images(size, IMAGES)
    fixed = model.prefix(images)
    with torch.no_grad():
        scores = model.forward(params, fixed[None], training=False)[0]
    export_peft(folder / "adapter", params, SimpleNamespace(config=config, encoder=model.encoder))
    seed = model.encoder.seed
    own = is_import_path(config.name)
    base: Any = own_base(config, size, seed) if own else library_model(config, size, seed, CLASSES)
    adapted = peft.PeftModel.from_pretrained(base.eval(), folder / "adapter").eval()
    head = load_file(folder / "adapter" / "head.safetensors")
    (code,) = re.findall(r"logits = .*", (folder / "adapter" / "README.md").read_text())
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.encoder.mean, model.encoder.std))
    space = {"model": adapted, "images": (images - mean) / std, "head": head, "F": torch.nn.functional}
    with torch.no_grad():
        exec(code, space)
    return space["logits"], scores


def own_base(config: Any, size: int, seed: int) -> torch.nn.Module:
    """What ``load_encoder`` calls, with the same random stream."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return mixed(config, size)


def test_peft_is_told_whole_paths_where_an_end_would_mean_others_too() -> None:
    net = torch.nn.Module()
    net.fc, net.inner = torch.nn.Linear(2, 2), torch.nn.Sequential()
    net.inner.add_module("fc", torch.nn.Conv2d(2, 2, 1))
    assert LibraryNet(net).targets(["fc"]) == "fc"
    assert LibraryNet(net).targets(["fc", "inner.fc"]) == ["fc", "inner.fc"]
    assert LibraryNet(net.inner).targets(["fc"]) == ["fc"]
