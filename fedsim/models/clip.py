"""Image encoders from open_clip, and the text classifier made of their text towers.

The classifier is that of DEeR (released code, models_dict/CLIP.py): the cosine between the image's features
and those of each class's prompt, times exp(logit_scale), which starts at ln(1 / 0.07) whatever scale the
weights came with.
"""

import difflib
import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedsim.config import ModelConfig
from fedsim.errors import UserError
from fedsim.kernels.rows import FrozenNorm
from fedsim.models.attention import Attention
from fedsim.models.hub import hub_access, user_errors
from fedsim.models.timm_vit import TimmTower, check_divides, feature_width, is_sliceable
from fedsim.models.tower import Encoder, Tower

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
HUB, FOLDER = "hf-hub:", "local-dir:"
CONFIG_FILE = "open_clip_config.json"
CONTENT = f"a folder with the model's {CONFIG_FILE}, weights, and a BERT's config.json and tokenizer"
ROUTES = f"a reachable model hub or its local cache; else open_clip:local-dir:PATH, {CONTENT}"


class ClipTower(Tower):
    """open_clip's own image transformer, with its projection."""

    rest: Any
    norms_before_products = ("ln_1", "ln_2")

    def __init__(self, visual: Any) -> None:
        blocks = list(visual.transformer.resblocks)
        visual.transformer.resblocks = nn.ModuleList()
        super().__init__(visual, blocks, {"rest": "visual", "blocks": "visual.transformer.resblocks"})

    def stem(self, images: Tensor) -> Tensor:
        out: Tensor = self.rest._embeds(images)
        return out

    def advance(self, block: Any, tokens: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor | None]:
        norms = isinstance(getattr(block, "ln_1", None), FrozenNorm) and isinstance(block.ln_2, FrozenNorm)
        if not (type(block) is ResidualAttentionBlock and norms):
            return super().advance(block, tokens, branch)
        tokens, normal = block.ln_1.of_sum(tokens, branch)
        attended, _ = block.attn(normal, normal, normal, need_weights=False)
        tokens, normal = block.ln_2.of_sum(tokens, block.ls_1(attended))
        return tokens, block.ls_2(block.mlp(normal))

    def last_block(self, block: Any, tokens: Tensor) -> Tensor:
        plain = type(block) is ResidualAttentionBlock and isinstance(block.attn, Attention)
        if not (plain and self.rest.pool_type == "tok" and self.rest.attn_pool is None):
            return super().last_block(block, tokens)
        first = tokens[:, :1] + block.ls_1(block.attn.first_token(block.ln_1(tokens)))
        out: Tensor = first + block.ls_2(block.mlp(block.ln_2(first)))
        return out

    def finish(self, tokens: Tensor) -> Tensor:
        pooled: Tensor = self.rest._pool(tokens)[0]
        return pooled if self.rest.proj is None else pooled @ self.rest.proj


def build_clip(config: ModelConfig, image_size: int) -> nn.Module:
    """The whole open_clip model; initial values, where random, come from torch's global stream."""
    name = _name(config)
    random = config.weights == "random"
    with _access(name):
        model: nn.Module = open_clip.create_model(
            name,
            pretrained=_pretrained(name, config.weights),
            load_weights=not random,
            require_pretrained=not random,
            pretrained_text=False,
            force_image_size=image_size,
            **_own_text_config(name),
        )
    return model


def _access(name: str) -> AbstractContextManager[None]:
    """UserErrors for what fails inside; a folder holds all it needs, so the hub is not even asked."""
    where = f"model.name open_clip:{name}"
    return user_errors(where, CONTENT) if name.startswith(FOLDER) else hub_access(where, ROUTES)


def _name(config: ModelConfig) -> str:
    """The name as open_clip takes it; UserError unless it is a folder, on the hub, or known."""
    name = config.name.removeprefix("open_clip:")
    if name.startswith(HUB):
        return name
    if name.startswith(FOLDER):
        file = Path(name.removeprefix(FOLDER)) / CONFIG_FILE
        if not file.is_file():
            raise UserError("model.name", f"no file {file}", CONTENT)
        return name
    name = name.replace("/", "-")
    if name not in (known := open_clip.list_models()):
        near = ", ".join(difflib.get_close_matches(name, known, n=4, cutoff=0.4))
        raise UserError("model.name", config.name, f"a name that open_clip knows, such as {near}")
    return name


def _pretrained(name: str, weights: str | None) -> str | None:
    """What open_clip calls ``pretrained``: a tag or a file; None where the name brings the weights."""
    if weights == "random":
        return None
    if name.startswith((HUB, FOLDER)):
        if weights is None:
            return None
        raise UserError("model.weights", weights, f"null or random: the weights of {name} come with it")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights is None or (weights not in tags and not weights.endswith(".safetensors")):
        found = weights or f"null, and open_clip:{name} has no default"
        raise UserError("model.weights", found, f"one of {', '.join([*tags, 'random', 'a .safetensors file'])}")
    return weights


def _own_text_config(name: str) -> dict[str, Any]:
    """Let a local model's Hugging Face text tower take its config.json from the folder, not the hub."""
    if not name.startswith(FOLDER):
        return {}
    folder = Path(name.removeprefix(FOLDER))
    text: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text("utf-8"))["model_cfg"]["text_cfg"]
    if "hf_model_name" not in text:
        return {}
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}", "no config.json", f"that of the text tower, {text['hf_model_name']}")
    return {"text_cfg": text | {"hf_model_name": str(folder), "hf_model_pretrained": False}}


def encoder_of_clip(model: Any, config: ModelConfig, image_size: int, class_names: Sequence[str]) -> Encoder:
    """Keep the image tower of a whole open_clip model, and of the text tower the features of the class
    prompts.
    """
    features = _text_features(model.eval(), config, class_names) if config.classifier == "text" else None
    visual = model.visual
    preprocess = visual.preprocess_cfg
    net: nn.Module = visual
    if type(visual) is VisionTransformer:
        check_divides(image_size, visual.patch_size[0], config.name)
        net = ClipTower(visual)
    elif type(visual) is TimmModel and is_sliceable(visual.trunk):
        check_divides(image_size, visual.trunk.patch_embed.feat_ratio(), config.name)
        net = TimmTower(visual.trunk, "visual.trunk", visual.head, "visual.head")
    return Encoder(
        net,
        feature_width(net, image_size, config.name),
        tuple(preprocess["mean"]),
        tuple(preprocess["std"]),
        image_size,
        features,
        None if features is None else INITIAL_LOGIT_SCALE,
    )


def _text_features(model: Any, config: ModelConfig, class_names: Sequence[str]) -> Tensor:
    prompts = [config.prompt.replace("{}", name) for name in class_names]
    with _access(_name(config)):
        tokenizer = open_clip.get_tokenizer(_name(config))
    with torch.no_grad():
        return normalize(model.encode_text(tokenizer(prompts)), dim=-1)
