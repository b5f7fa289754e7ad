"""Reading a PEFT adapter into the parameters of a tuned tower: the way back of ``fedsim/models/export.py``.

An adapter of fedsim's has for a layer of several slices (q, k and v of a fused projection) the slices' factors below
and beside each other; one of peft's own has one A for all of them. Both are read.

Shapes: G targeted of S slices of a layer's output, R LoRA rank, D input width, O width of one slice.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsim.errors import UserError, reading
from fedsim.machine.files import parse_json
from fedsim.models.attention import ClipAttention, HuggingAttention
from fedsim.models.export import QKV
from fedsim.models.lora import LoraLayer
from fedsim.models.specs import A, B
from fedsim.models.tower import Tower
from fedsim.models.tuned_tower import TunedTower
from fedsim.models.weights import in_float32, read_weights

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
#: What peft can do to a layer beside adding factors of one scale.
UNREAD = (
    *("use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save", "layer_replication", "trainable_token_indices"),
    *("target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config"),
    *("monteclora_config", "velora_config"),
)
#: The beginnings that leave the frozen weights as they are; others take a part of them away, once more on loading.
BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")


def factors_of(folder: Path, model: TunedTower, where: str) -> dict[str, Tensor]:
    """Return every factor of the model's layers, float32 on the CPU, from an adapter of the same layers and rank.

    Another scale than the model's goes into B. UserError, at ``where``, for an adapter of other layers or ranks.
    """
    state = in_float32(read_weights(folder / ADAPTER, where))
    with reading(str(folder / CONFIG), "a JSON object as peft writes it"):
        words: dict[str, Any] = parse_json((folder / CONFIG).read_text("utf-8"))
        odd = [key for key in UNREAD if words.get(key)]
        odd += [] if words.get("bias") in (None, "none") else ["bias"]
        init = words.get("init_lora_weights", True)
        odd += [] if init in BEGINNINGS else [f"init_lora_weights: {init}"]
    if odd or model.lora.use_dora:
        raise UserError(where, f"{folder}, an adapter with {(odd or ['use_dora'])[0]}", "one of plain LoRA factors")
    found: dict[str, Tensor] = {}
    for layer in model.lora_layers:
        pairs = []
        for path in library_paths(model.tower, layer, model.lora.target):
            names = [f"base_model.model.{path}.lora_{letter}.weight" for letter in "AB"]
            if missing := [name for name in names if name not in state]:
                raise UserError(
                    where, f"{folder} without {missing[0]}", "an adapter of the layers of model.lora.target"
                )
            a, b = (state.pop(name) for name in names)
            pairs.append((a, b * (_scale(words, path, len(a)) / model.lora.scaling(model.lora.r))))
        shapes = layer.shapes
        factors = _split(layer, *pairs[0]) if len(pairs) == 1 else tuple(map(torch.stack, zip(*pairs, strict=True)))
        for name, factor in zip((f"{layer.path}{A}", f"{layer.path}{B}"), factors, strict=True):
            if tuple(factor.shape) != shapes[name]:
                sizes = f"{tuple(factor.shape)} for {layer.path}"
                raise UserError(where, f"{folder} with factors {sizes}", f"{shapes[name]}, of rank {layer.rank}")
            found[name] = factor.contiguous()
    if left := [name for name, value in state.items() if value.any()]:
        raise UserError(where, f"{folder} with {left[0]}", "the layers of model.lora.target alone")
    return found


def library_paths(tower: Tower, layer: LoraLayer, target: tuple[str, ...]) -> list[str]:
    """Where the library keeps a layer: one path, or one for each targeted of q, k and v where they are apart."""
    parent, _, word = layer.path.rpartition(".")
    attention = tower.get_submodule(parent)
    if isinstance(attention, HuggingAttention) and word == "qkv":
        names = [name for name, part in zip(attention.names, QKV, strict=False) if part in target]
        return [f"{tower.source_path(parent)}.{name}" for name in names]
    if isinstance(attention, HuggingAttention) and word == "proj":
        return [f"{tower.source_path(parent)}.{attention.names[3]}"]
    return [tower.source_path(parent if isinstance(attention, ClipAttention) else layer.path)]


def _split(layer: LoraLayer, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Slices' own A (G, R, D) and B (G, O, R) of a layer's one pair; as they are where they have no such form."""
    num, slices = len(layer.module.slices), list(layer.module.slices)
    b_SOR = b.unflatten(0, (layer.module.num_slices, -1))
    is_idle = [not b_SOR[index].any() for index in range(len(b_SOR)) if index not in slices]
    if not all(is_idle):
        return a, b
    if len(a) == layer.rank:
        return a.expand(num, *a.shape), b_SOR[slices]
    if len(a) != num * layer.rank:
        return a, b
    b_GOGR = b_SOR[slices].unflatten(2, (num, layer.rank))
    own = torch.stack([b_GOGR[place, :, place] for place in range(num)])
    return (a.unflatten(0, (num, -1)), own) if b_GOGR.count_nonzero() == own.count_nonzero() else (a, b)


def _scale(words: Mapping[str, Any], path: str, rank: int) -> float:
    """What peft multiplies a layer's B A by."""
    alphas = words.get("alpha_pattern") or {}
    own = (float(alpha) for pattern, alpha in alphas.items() if re.fullmatch(rf"(.*\.)?({pattern})", path))
    alpha = next(own, float(words.get("lora_alpha", 8)))
    return alpha / (rank**0.5 if words.get("use_rslora") else rank)
