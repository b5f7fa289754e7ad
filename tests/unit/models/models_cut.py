"""Small models of every kind, whole and plainly cut, with inputs for them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.config.words import ModelConfig
from fedsim.kernels.frozen import plain
from fedsim.models.encoders import load_encoder
from fedsim.models.stacked import StackedModel
from fedsim.models.submodel.feed_forward import choose_neurons, find_feed_forward
from fedsim.models.tower import Tower
from fedsim.models.tuned_tower import tune
from tests.unit.models.models_clip_folders import write_clip
from tests.unit.models.models_hugging_folders import write_hugging

CPU = torch.device("cpu")
VIT = {"patch_size": 7, "embed_dim": 32, "depth": 3, "num_heads": 2}
RANK = 20
SIZES = {"timm": 14, "open_clip": 32, "vit": 16, "bert": 16, "roberta": 16}
KINDS = list(SIZES)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def words_of(kind: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """The ``model`` section of a config, its weights in ``folder``; ReLU, whose zeros are many."""
    lora = {"r": 2, "lora_alpha": 4, "target": ["q", "k", "v"]}
    if kind == "timm":
        words = {"name": "timm:vit_tiny_patch16_224", "weights": "random", "options": {**VIT, "act_layer": "relu"}}
    elif kind == "open_clip":
        write_clip(folder, {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 8})
        words = {"name": f"open_clip:local-dir:{folder}", "classifier": "linear"}
    else:
        write_hugging(folder, kind, hidden_act="relu")
        words = {"name": f"hf:{folder}"}
    return {**words, "lora": lora, **changes}


def keep(block: nn.Module, neurons: Tensor) -> None:
    """Put shorter linear layers, frozen like the old ones, in a block's place for its feed-forward."""
    layer = find_feed_forward(block, "")
    inner, outer = layer.inner, layer.outer
    for path, weight, bias in (
        (layer.inner_path, plain(inner.weight)[neurons], inner.bias[neurons]),
        (layer.outer_path, plain(outer.weight)[:, neurons], outer.bias),
    ):
        new = nn.Linear(weight.shape[1], weight.shape[0])
        new.weight, new.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
        parent, _, name = path.rpartition(".")
        setattr(block.get_submodule(parent), name, new.requires_grad_(False))


def plainly_cut(
    config: ModelConfig, size: int, retained: tuple[int, ...], rank: int
) -> tuple[Tower, dict[int, Tensor], dict[str, Tensor]]:
    """A model without LoRA of its own, cut in place, the neurons it kept, and its cut feed-forwards' tensors."""
    tower = load_encoder(config, size, ["a", "b"], 0).tower
    assert tower is not None
    neurons = {number: own for number, (_, own) in choose_neurons(tower.blocks, retained, rank).items()}
    tensors = {}
    for number, own in neurons.items():
        keep(tower.blocks[number], own)
        trained = find_feed_forward(tower.blocks[number], "").trained()
        tensors |= {f"blocks.{number}.{path}": value.detach() for path, value in trained.items()}
    return tower, neurons, tensors


def full_model(config: ModelConfig, size: int) -> StackedModel:
    return tune(config, load_encoder(config, size, ["a", "b"], 0), 2, CPU)


def inputs_of(kind: str, number: int) -> Tensor:
    """Images, or texts of 1 to 7 tokens."""
    generator = torch.Generator().manual_seed(5)
    if kind not in ("bert", "roberta"):
        return torch.rand(number, 3, SIZES[kind], SIZES[kind], generator=generator)
    texts = torch.full((number, 2, 7), -1)
    texts[:, 1] = 0
    for row in range(number):
        length = 1 + (3 * row + 6) % 7
        texts[row, 0, :length] = torch.randint(1, 12, (length,), generator=generator)
    return texts.int()
