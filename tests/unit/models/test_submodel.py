"""Cutting feed-forwards: found by structure in every library's blocks, chosen by hand-computed saliency."""

from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.encoders import load_encoder
from fedsim.models.submodel.feed_forward import choose_neurons, find_feed_forward, neuron_saliency
from fedsim.models.submodel.model import cut_block
from fedsim.models.tower import Tower
from tests.unit.models.models_clip_folders import write_clip
from tests.unit.models.models_hugging_folders import write_hugging

CLASSES = ["one", "two"]
VIT = {"patch_size": 7, "embed_dim": 32, "depth": 3, "num_heads": 2}


def small_block() -> nn.Sequential:
    """Three neurons between two values, of squared saliency 0 + 25, 9 + 1 and 16 + 0; biases that must not count."""
    block = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 2))
    with torch.no_grad():
        block[0].weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]))
        block[0].bias.copy_(torch.tensor([1.0, 200.0, 3.0]))
        block[2].weight.copy_(torch.tensor([[3.0, 1.0, 0.0], [4.0, 0.0, 0.0]]))
    return block


def test_the_most_salient_neurons_stay() -> None:
    block = small_block()
    torch.testing.assert_close(neuron_saliency(find_feed_forward(block, "")).square(), torch.tensor([25.0, 10.0, 16.0]))
    layer, neurons = choose_neurons([block], [], 2)[0]
    assert neurons.tolist() == [0, 2]
    cut = layer.cut(neurons)
    assert cut["0.bias"].tolist() == [1.0, 3.0]
    inputs = torch.randn(4, 2)
    hidden = nn.functional.gelu(block[0](inputs))
    hidden[:, 1] = 0
    found = nn.functional.gelu(nn.functional.linear(inputs, cut["0.weight"], cut["0.bias"]))
    torch.testing.assert_close(nn.functional.linear(found, cut["2.weight"], cut["2.bias"]), block[2](hidden))


def test_of_equal_neurons_the_first_stay() -> None:
    block = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 2))
    for layer in (block[0], block[1]):
        nn.init.ones_(layer.weight)
    assert choose_neurons([block], [], 3)[0][1].tolist() == [0, 1, 2]


def tower_of(kind: str, folder: Path) -> Tower:
    if kind == "open_clip":
        write_clip(folder, {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 8})
        config = ModelConfig(name=f"open_clip:local-dir:{folder}", train="all")
    elif kind == "timm":
        config = ModelConfig(name="timm:vit_tiny_patch16_224", weights="random", options=VIT, train="all")
    else:
        write_hugging(folder, kind)
        config = ModelConfig(name=f"hf:{folder}", train="all")
    tower = load_encoder(config, {"vit": 16, "open_clip": 32}.get(kind, 14), CLASSES, 0).tower
    assert tower is not None
    return tower


NAMES = {
    "timm": ("mlp.fc1", "mlp.fc2"),
    "open_clip": ("mlp.c_fc", "mlp.c_proj"),
    "vit": ("mlp.fc1", "mlp.fc2"),
    "bert": ("intermediate.dense", "output.dense"),
    "roberta": ("intermediate.dense", "output.dense"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_every_library_s_blocks(kind: str, tmp_path: Path) -> None:
    tower = tower_of(kind, tmp_path)
    width = find_feed_forward(tower.blocks[0], "").inner.out_features
    kept = choose_neurons(tower.blocks, [1], width // 2)
    assert sorted(kept) == [0, 2]
    for number, (layer, neurons) in kept.items():
        assert (layer.inner_path, layer.outer_path) == NAMES[kind]
        whole, cut = layer.trained(), layer.cut(neurons)
        assert whole.keys() == cut.keys()
        dropped = sum(value.numel() for value in whole.values()) - sum(value.numel() for value in cut.values())
        assert dropped == (width - width // 2) * (2 * 32 + 1)
        block, _ = cut_block(tower.blocks[number], number, {f"blocks.{number}.{path}": cut[path] for path in cut})
        assert block is not tower.blocks[number]


@pytest.mark.parametrize(
    ("retained", "rank", "message"),
    [
        ([0, 3], 8, "layers_retained: found 3; expected layers from 0 to 2"),
        ([-1], 8, "layers_retained: found -1; expected layers from 0 to 2"),
        ([0, 1, 2], 8, "layers_retained: found all 3 layers; expected one at least that is cut"),
        ([], 129, "intermediate_rank: found 129; expected from 1 to the 128 neurons of layer 0"),
        ([0, 1], 0, "intermediate_rank: found 0; expected from 1 to the 128 neurons of layer 2"),
    ],
)
def test_what_no_model_has(tmp_path: Path, retained: list[int], rank: int, message: str) -> None:
    tower = tower_of("timm", tmp_path)
    with pytest.raises(UserError, match=message):
        choose_neurons(tower.blocks, retained, rank)


def test_a_model_without_feed_forward_is_told_what_was_looked_for() -> None:
    blocks = [small_block(), nn.Sequential(nn.Linear(4, 12), nn.Linear(4, 4))]
    with pytest.raises(
        UserError, match=r"layer 1 of the model: found no .* 0 \(4 -> 12\), 1 \(4 -> 4\); .*fc1 and fc2"
    ):
        choose_neurons(blocks, [], 2)


def test_a_norm_over_the_neurons_is_not_cut() -> None:
    blocks = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, scale_mlp_norm=True).blocks
    with pytest.raises(UserError, match=r"layer 0 of the model: found mlp\.norm\.weight over the 32 neurons"):
        choose_neurons(list(blocks), [], 16)
