"""LoRA methods with one client against a plain loop: dense weights, torch.optim, no code of the round."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.config.words import ModelConfig
from fedsim.models.encoders import library_model
from tests.helpers import LORA, TINY_VIT, make_config, make_dataset, make_simulation, play

SIZE, BATCH = 41, 16
SCALING = LORA["lora_alpha"] / LORA["r"]
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "momentum": 0.0, "weight_decay": 0.05},
}


class PlainModel(nn.Module):
    """timm's own net; every fused qkv gets W + scaling * [B_q A_q; B_k A_k; B_v A_v]."""

    def __init__(self, net: Any, params: dict[str, Tensor]) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        self.own = nn.ParameterDict({name.replace(".", "/"): value.clone() for name, value in params.items()})

    def forward(self, images: Tensor) -> Tensor:
        weights = {}
        for number in range(len(self.net.blocks)):
            path = f"blocks.{number}.attn.qkv"
            a, b = (self.own[f"{path}.lora_{kind}".replace(".", "/")] for kind in "ab")
            update = torch.cat([b[slice_] @ a[slice_] for slice_ in range(3)])
            weights[f"{path}.weight"] = self.net.get_submodule(path).weight + SCALING * update
        features = functional_call(self.net, weights, (images,))
        return F.linear(features, self.own["head/weight"], self.own["head/bias"])


def train_plainly(model: PlainModel, pixels: Tensor, labels: Tensor, words: dict[str, Any], frozen: str) -> None:
    """Two epochs in stored order, with a fresh optimiser, of all but the parameters whose name ends so."""
    own = [value for name, value in model.own.items() if not name.endswith(frozen)]
    if words["optimizer"] == "sgd":
        chosen = {key: words[key] for key in ("lr", "momentum", "weight_decay")}
        optimizer: torch.optim.Optimizer = torch.optim.SGD(own, **chosen)
    else:
        optimizer = torch.optim.AdamW(own, lr=words["lr"], weight_decay=words["weight_decay"])
    for _ in range(2):
        for start in range(0, len(labels), BATCH):
            model.zero_grad()
            loss = F.cross_entropy(model(pixels[start : start + BATCH]), labels[start : start + BATCH])
            loss.backward()
            nn.utils.clip_grad_norm_(own, words["clip_norm"])
            optimizer.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("method", "frozen"),
    [("fedavg", ["nothing"]), ("ffa_lora", ["lora_a"]), ("deer", ["lora_a", "lora_b"])],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_round_of_one_client(method: str, frozen: list[str], optimizer: str) -> None:
    """DEeR's round is two local trainings: all but A, then all but B from where the first ended."""
    words = {**OPTIMIZERS[optimizer], "clip_norm": 0.5, "batch_size": BATCH, "epochs": 2, "shuffle": False}
    dataset, parts = make_dataset([SIZE])
    config = make_config(algorithm={"name": method}, train=words, clients={"per_block": 1})
    sim = make_simulation(config, dataset, parts)
    start = sim.initial_state()
    state, _ = play(sim, 1)

    model_words = ModelConfig.model_validate({**TINY_VIT, "lora": LORA})
    net: Any = library_model(model_words, config.data.image_size, 0)
    model = PlainModel(net, start.params)
    mean, std = (torch.tensor(net.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    pixels = (dataset.images[torch.from_numpy(parts[0])].float() / 255 - mean) / std
    for phase in frozen:
        train_plainly(model, pixels, dataset.labels[torch.from_numpy(parts[0])], words, phase)
    assert state.params.keys() == start.params.keys()
    for name, value in state.params.items():
        change = value - start.params[name]
        expected = model.own[name.replace(".", "/")].detach() - start.params[name]
        assert (change - expected).norm() <= 1e-4 * expected.norm() + 1e-9, name
        if method == "deer":
            assert change.norm() > 0
