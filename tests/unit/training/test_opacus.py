"""Sums of cut gradients against opacus 1.6, on a timm transformer whose LoRA is made of linear layers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from opacus import GradSampleModule
from torch import Tensor, nn

from fedsim.config.words import ModelConfig
from fedsim.models.encoders import library_model
from tests.helpers import IMAGE_SIZE, TINY_VIT, simulate
from tests.unit.training.private_steps import STILL, away_from_zero, batches, gradients, norm, protected

RANK, ALPHA = 2, 4
SEED = 0  # of the tests' models
TARGETS = ["q", "k", "v", "proj", "fc1", "fc2"]
# What opacus says of every frozen layer before the first trained one.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


class Lora(nn.Module):
    """A frozen linear layer and factors for each of the equal slices of its output."""

    def __init__(self, frozen: nn.Linear, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = nn.ModuleList(linear(part) for part in a)
        self.up = nn.ModuleList(linear(part) for part in b)

    def forward(self, x: Tensor) -> Tensor:
        low = [up(down(x)) for up, down in zip(self.up, self.down, strict=True)]
        out: Tensor = self.frozen(x) + ALPHA / RANK * torch.cat(low, -1)
        return out


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.clone())
    return layer


def opacus_model(params: dict[str, Tensor]) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """timm's network with a head, and its trained parameters by our names; those of LoRA are lists by slice."""
    model: Any = library_model(ModelConfig.model_validate({**TINY_VIT, "train": "head"}), IMAGE_SIZE, SEED)
    model.requires_grad_(False)
    trained: dict[str, Any] = {}
    for path in sorted({name.rpartition(".")[0] for name in params if ".lora_" in name}):
        layer = Lora(model.get_submodule(path), params[f"{path}.lora_a"], params[f"{path}.lora_b"])
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer)
        trained[f"{path}.lora_a"] = [part.weight for part in layer.down]
        trained[f"{path}.lora_b"] = [part.weight for part in layer.up]
    head = linear(params["head.weight"])
    head.bias = nn.Parameter(params["head.bias"].clone())
    model.head = head
    # In eval mode opacus captures nothing; the network has no dropout.
    return model.train(), trained | {"head.weight": [head.weight], "head.bias": [head.bias]}


@pytest.mark.parametrize("share", [0.5, 5.5], ids=["all are cut", "some are cut"])
def test_cut_sums_are_those_of_opacus(share: float) -> None:
    sizes, size = (12, 9), 5
    model = {**TINY_VIT, "lora": {"r": RANK, "lora_alpha": ALPHA, "target": TARGETS}}
    words: dict[str, Any] = {"model": model, "train": {**STILL, "batch_size": size}}
    sim = simulate(sizes, 2, privacy=protected(share), **words)
    state = away_from_zero(sim, sim.initial_state())
    own, trained = opacus_model(state.params)
    wrapped = GradSampleModule(own, loss_reduction="sum")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (sim.model.encoder.mean, sim.model.encoder.std))
    (_, found), *_ = gradients(sim, (0, 1), state)
    factors_of_all = []
    for row, drawn in enumerate(batches(sim, (0, 1))):
        places = torch.from_numpy(drawn[0])
        wrapped.zero_grad()
        images = (sim.dataset.images[places].float() / 255 - mean) / std
        F.cross_entropy(wrapped(images), sim.dataset.labels[places], reduction="sum").backward()
        samples = {name: torch.stack([p.grad_sample for p in parts], 1) for name, parts in trained.items()}  # type: ignore[attr-defined]  # opacus's
        norms = torch.cat([value.flatten(1) for value in samples.values()], 1).norm(dim=1)
        factors = (share / norms).clamp(max=1)
        factors_of_all += factors.tolist()
        expected = {
            name: torch.einsum("n,n...->...", factors, value).reshape(found[name][row].shape) / size
            for name, value in samples.items()
        }
        error = norm({name: found[name][row] - value for name, value in expected.items()})
        assert error < 1e-5 * norm(expected)
    assert min(factors_of_all) < 1
    assert (max(factors_of_all) == 1) == (share > 1)
