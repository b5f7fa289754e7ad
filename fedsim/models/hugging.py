"""Encoders from Hugging Face transformers: BERT and RoBERTa for texts, ViT for images.

Shapes: N texts or images, T tokens, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, BertModel, RobertaModel, ViTModel

from fedsim.config.words import ModelConfig
from fedsim.data.assets import fetch
from fedsim.errors import UserError
from fedsim.models.any.hugging import CONTENT, VISION, build_vision, encoder_of_vision, load_library
from fedsim.models.attention import HuggingAttention
from fedsim.models.folders import access, check_tokenizer, normalisation, object_of, preprocessing, refuse_code
from fedsim.models.timm_vit import check_divides, feature_width
from fedsim.models.tower import Encoder, Tower

MINILM = "packaged:minilm"
# The library's names of the projections, q, k and v in the order of our fused one.
BERT_NAMES = ("query", "key", "value")
VIT_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj")
FEATURES = {
    "pooler": "states.pooler_output",
    "first": "states.last_hidden_state[:, 0]",
    "mean": "(states.last_hidden_state * tokens.attention_mask[..., None]).sum(1) / tokens.attention_mask.sum(1, True)",
}
#: Where a sentence transformer's folder says how it pools, and which ways there are here.
POOLING_FILE = "1_Pooling/config.json"
POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
HALF = [0.5, 0.5, 0.5]  # what the library's image processors take where the folder names nothing else


class TextTower(Tower):
    """A BertModel or RobertaModel. ``pooling``: pooler (BERT's, of the first token), first or mean (of all tokens)."""

    rest: Any

    def __init__(self, model: Any, pooling: str) -> None:
        blocks = list(model.encoder.layer)
        model.encoder.layer = nn.ModuleList()
        for block in blocks:
            own = block.attention.self
            block.attention.self = _fused(own, BERT_NAMES, nn.Identity(), own.num_attention_heads)
        super().__init__(model, blocks, {"rest": "", "blocks": "encoder.layer"})
        self.pooling = pooling
        self.library_features = FEATURES[pooling]

    @property
    def num_segments(self) -> int:
        """How many kinds of text, first and second of a pair, the model tells apart."""
        return int(self.rest.config.type_vocab_size)

    def stem(self, inputs: Tensor) -> Tensor:
        return inputs

    def embed(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (N, T, D), and the mask (N, 1, 1, T) that is false after a text's end."""
        ids, segments = inputs.long().unbind(1)
        ids = ids.masked_fill(ids < 0, self.rest.config.pad_token_id)
        tokens: Tensor = self.rest.embeddings(input_ids=ids, token_type_ids=segments)
        return tokens, (inputs[:, 0] >= 0)[:, None, None]

    def own_tokens(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0] >= 0

    def encode(self, tokens: Tensor, *, every_token: bool = False) -> Tensor:
        tokens, mask = self.embed(tokens)
        *body, last = self.blocks
        for block in body:
            tokens = block(tokens, mask)
        if self.pooling == "mean":
            return mean_of_tokens(last(tokens, mask), mask)
        found = last(tokens, mask) if every_token else self.first_of_last(last, tokens, mask)
        out: Tensor = self.rest.pooler(found) if self.pooling == "pooler" else found[:, 0]
        return out

    def states(self, tokens: Tensor) -> list[Tensor]:
        tokens, mask = self.embed(tokens)
        found = []
        for block in self.blocks:
            tokens = block(tokens, mask)
            found.append(tokens)
        return found

    def first_of_last(self, block: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        """The last block, for the first token alone: (N, T, D) to (N, 1, D)."""
        attended = block.attention.self.first_token(tokens, mask)
        out: Tensor = block.feed_forward_chunk(block.attention.output(attended, tokens[:, :1]))
        return out


class HuggingVit(Tower):
    """A ViTModel, whose normalised class token are the features, as its classifier has it."""

    rest: Any
    library_features = "model(images).last_hidden_state[:, 0]"

    def __init__(self, model: Any) -> None:
        blocks = list(model.layers)
        model.layers = nn.ModuleList()
        for block in blocks:
            own = block.attention
            block.attention = _fused(own, VIT_NAMES, own.o_proj, own.num_attention_heads)
        super().__init__(model, blocks, {"rest": "", "blocks": "layers"})

    def stem(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.rest.embeddings(inputs)
        return out

    def last_block(self, block: Any, tokens: Tensor) -> Tensor:
        first = tokens[:, :1] + block.attention.first_token(block.layernorm_before(tokens))
        out: Tensor = first + block.mlp(block.layernorm_after(first))
        return out

    def finish(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.rest.layernorm(tokens[:, 0])
        return out


def mean_of_tokens(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean (N, D) of each text's own tokens (N, T, D); ``mask`` (N, 1, 1, T)."""
    weights = mask[:, 0, 0, :, None].to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1)


def _fused(source: Any, names: tuple[str, ...], proj: nn.Module, num_heads: int) -> HuggingAttention:
    """Take over the weights of three projections as the rows of one."""
    parts = [getattr(source, name) for name in names[:3]]
    qkv = nn.Linear(parts[0].in_features, 3 * parts[0].out_features, bias=parts[0].bias is not None, device="meta")
    qkv.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]))
    if parts[0].bias is not None:
        qkv.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]))
    return HuggingAttention(qkv, proj, num_heads, names)


def source_of(config: ModelConfig) -> str:
    """The folder or hub name behind a model name."""
    return str(fetch("minilm")) if config.name == MINILM else config.name.removeprefix("hf:")


def build_hugging(config: ModelConfig, image_size: int, class_names: Sequence[str]) -> nn.Module:
    """The library's BertModel, RobertaModel or ViTModel, or one of ``VISION``, without classifier, in float32.

    Nothing is dropped out.

    ``config.name`` is packaged:minilm, or hf: and a local folder or a name on the hub. Weights are read from
    safetensors files alone; every tensor must be there. With ``weights: random`` they come from torch's global stream.
    UserError for other architectures, decoders, custom code, missing files and tensors, images of a size that the model
    does not take, and another pooling than ``POOLINGS``.
    """
    del class_names
    source, where = source_of(config), f"model.name {config.name}"
    with access(source, where, CONTENT):
        refuse_code(source, where)
        settings = AutoConfig.from_pretrained(source, trust_remote_code=False)
        pooled = settings.model_type == "bert" and pooling_of(source) is None
    if settings.model_type in VISION:
        return build_vision(config, settings, source, image_size)
    classes: dict[str, Any] = {"bert": BertModel, "roberta": RobertaModel, "vit": ViTModel}
    if settings.model_type not in classes:
        known = ", ".join((*classes, *VISION))
        raise UserError(where, f"a model of type {settings.model_type}", f"one of {known}")
    if getattr(settings, "is_decoder", False):
        raise UserError(where, "is_decoder: true, so that a token sees those before it alone", "an encoder")
    library = classes[settings.model_type]
    if library is ViTModel and image_size != settings.image_size:
        raise UserError("data.image_size", f"{image_size} with {config.name}", str(settings.image_size))
    settings.hidden_dropout_prob = settings.attention_probs_dropout_prob = 0.0
    return load_library(library, config, settings, source, add_pooling_layer=pooled)


def pooling_of(source: str) -> str | None:
    """How a sentence transformer pools its tokens, as ``TextTower`` has it; None where this is none.

    UserError for another pooling than ``POOLINGS``.
    """
    content = object_of(source, POOLING_FILE)
    if content is None:
        return None
    modes = [key for key, value in content.items() if key.startswith("pooling_mode") and value]
    if len(modes) == 1 and modes[0] in POOLINGS:
        return POOLINGS[modes[0]]
    raise UserError(f"{source}/{POOLING_FILE}", ", ".join(modes) or "no pooling", f"one of {', '.join(POOLINGS)}")


def encoder_of_hugging(model: Any, config: ModelConfig, image_size: int, class_names: Sequence[str]) -> Encoder:
    """Wrap the library's model as a tower, with what its inputs need: normalisation, or the tokenizer."""
    if not isinstance(model, BertModel | RobertaModel | ViTModel):
        return encoder_of_vision(model, config, image_size, class_names)
    source, width, where = source_of(config), int(model.config.hidden_size), f"model.name {config.name}"
    if isinstance(model, ViTModel):
        content = preprocessing(source, where) or {}
        mean, std = normalisation(content.get("image_mean", HALF), content.get("image_std", HALF), where)
        check_divides(image_size, model.embeddings.patch_embeddings.patch_size[0], config.name)
        feature_width(lambda images: model(images).last_hidden_state[:, 0], image_size, config.name)
        return Encoder(HuggingVit(model).eval(), width, mean, std, image_size)
    with access(source, where, "a folder or hub name with tokenizer.json"):
        pooling = "pooler" if model.pooler is not None else pooling_of(source) or "first"
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=False)
    check_tokenizer(tokenizer, where, model.config.vocab_size)
    padding = model.config.pad_token_id
    if not (isinstance(padding, int) and 0 <= padding < model.config.vocab_size):
        raise UserError(where, f"pad_token_id {padding}", f"an id below the vocab_size {model.config.vocab_size}")
    positions = model.config.max_position_embeddings
    # RoBERTa numbers its positions from the one after the padding's.
    room = positions - padding - 1 if isinstance(model, RobertaModel) else positions
    tokenizer.model_max_length = min(tokenizer.model_max_length, room)
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return Encoder(TextTower(model, pooling).eval(), width, zero, one, image_size, tokenizer=tokenizer)
