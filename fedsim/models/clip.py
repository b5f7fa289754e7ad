"""Image encoders from open_clip, and the text classifier made of their text towers.

The classifier is that of DEeR (released code, models_dict/CLIP.py): the cosine between the image's features
and those of each class's prompt, times exp(logit_scale), which starts at ln(1 / 0.07) whatever scale the
weights came with.
"""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.kernels.rows import FrozenNorm
from fedsim.models.attention import Attention
from fedsim.models.clip_weights import CONFIG_FILE, FOLDER, HUB, float32_copy, is_float32, own_weights
from fedsim.models.folders import check_tokenizer, normalisation, object_of, refuse_code
from fedsim.models.hub import hub_access, user_errors
from fedsim.models.timm_vit import TimmTower, check_divides, feature_width, is_sliceable
from fedsim.models.tower import Encoder, Tower
from fedsim.models.weights import check_kinds

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
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


def build_clip(config: ModelConfig, image_size: int, class_names: Sequence[str]) -> nn.Module:
    """The whole open_clip model in float32; initial values, where random, come from torch's global stream."""
    del class_names
    name = _name(config)
    words = _model_config(name)
    pretrained = _pretrained(name, config.weights)
    random = config.weights == "random"
    where = _where(name) if pretrained is None else f"model.weights {pretrained}"
    state = None if random else own_weights(name, pretrained, bool(words.get("quick_gelu")), where)
    with TemporaryDirectory() as scratch, _access(name):
        text = _own_text_config(name, words["text_cfg"], Path(scratch))
        if state is not None and not is_float32(state):
            name, pretrained = float32_copy(name, state, Path(scratch))
        model: Any = open_clip.create_model(
            name,
            pretrained=pretrained,
            load_weights=not random,
            require_pretrained=not random,
            pretrained_text=False,
            force_image_size=image_size,
            force_patch_dropout=0.0,
            **text,
        )
    if state is not None:
        check_kinds(state, model, where)
    built: nn.Module = model
    return built


def _access(name: str) -> AbstractContextManager[None]:
    """UserErrors for what fails inside; a folder holds all it needs, so the hub is not even asked."""
    return user_errors(_where(name), CONTENT) if name.startswith(FOLDER) else hub_access(_where(name), ROUTES)


def _where(name: str) -> str:
    return f"model.name open_clip:{name}"


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


def _model_config(name: str) -> dict[str, Any]:
    """What open_clip calls the model's config; UserError where its two towers are not described."""
    with _access(name):
        words: dict[str, Any] = open_clip.get_model_config(name)
    is_section = isinstance(words, dict)  # a folder may hold anything
    if not is_section or not all(isinstance(words.get(key), dict) for key in ("vision_cfg", "text_cfg")):
        raise UserError(_where(name), "a config without vision_cfg and text_cfg, or other than as sections", CONTENT)
    return words


def _source(name: str, other: str) -> str:
    """Where transformers finds a text tower's files: in the model's own folder, else under the name ``other``."""
    return name.removeprefix(FOLDER) if name.startswith(FOLDER) else other


def _own_text_config(name: str, text: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """Let a text tower of transformers be built from a config.json in ``scratch``: a local folder's own, not the
    hub's, and in float32 whatever type it names, for open_clip would round the weights to that.
    """
    if "hf_model_name" not in text:
        return {}
    source = _source(name, text["hf_model_name"])
    refuse_code(source, _where(name))
    settings = object_of(source, "config.json")
    if settings is None:
        raise UserError(source, "no config.json", f"that of the text tower, {text['hf_model_name']}")
    settings.pop("torch_dtype", None)
    (scratch / "config.json").write_text(json.dumps({**settings, "dtype": "float32"}), "utf-8")
    return {"text_cfg": {**text, "hf_model_name": str(scratch), "hf_model_pretrained": False}}


def encoder_of_clip(model: Any, config: ModelConfig, image_size: int, class_names: Sequence[str]) -> Encoder:
    """Keep the image tower of a whole open_clip model, and of the text tower the features of the class
    prompts.
    """
    features = _text_features(model.eval(), config, class_names) if config.classifier == "text" else None
    visual = model.visual
    mean, std = (visual.preprocess_cfg[key] for key in ("mean", "std"))
    triples = normalisation(mean, std, f"model.name {config.name}")
    is_own = type(visual) is VisionTransformer
    is_timm = type(visual) is TimmModel and is_sliceable(visual.trunk)
    if is_own:
        check_divides(image_size, visual.patch_size[0], config.name)
    elif is_timm:
        check_divides(image_size, visual.trunk.patch_embed.feat_ratio(), config.name)
    width = feature_width(visual, image_size, config.name)
    net: nn.Module = visual
    if is_own:
        net = ClipTower(visual)
    elif is_timm:
        net = TimmTower(visual.trunk, "visual.trunk", visual.head, "visual.head")
    scale = None if features is None else INITIAL_LOGIT_SCALE
    return Encoder(net.eval(), width, *triples, image_size, features, scale)


def _text_features(model: Any, config: ModelConfig, class_names: Sequence[str]) -> Tensor:
    prompts = [config.prompt.replace("{}", name) for name in class_names]
    tokens = _tokens(model, _name(config), prompts)
    for place, own in enumerate(tokens):
        same = [class_names[other] for other in range(place) if torch.equal(tokens[other], own)]
        if same:
            found = f"the same tokens for the prompts of {same[0]} and {class_names[place]}"
            raise UserError(f"model.name {config.name}", found, "a tokenizer that knows the classes' names")
    with torch.no_grad(), _access(_name(config)):
        features: Tensor = model.encode_text(tokens)
    return normalize(features, dim=-1)


def _tokens(model: Any, name: str, prompts: list[str]) -> Tensor:
    """The prompts' token ids (C, T); UserError for a tokenizer that is none of the model's."""
    text = _model_config(name)["text_cfg"]
    words = {}
    if source := text.get("hf_tokenizer_name"):
        words = {"trust_remote_code": False}  # a folder's config may name other arguments of the tokenizer
        with _access(name):
            refuse_code(_source(name, source), _where(name))
    with _access(name):
        tokenizer = open_clip.get_tokenizer(name, **words)
        if isinstance(tokenizer, HFTokenizer):
            check_tokenizer(tokenizer.tokenizer, _where(name), model.vocab_size)
        tokens: Tensor = tokenizer(prompts)
    if (largest := int(tokens.max())) >= model.vocab_size:
        found = f"token id {largest} with {model.vocab_size} embeddings"
        raise UserError(_where(name), found, "the model's own tokenizer")
    return tokens
