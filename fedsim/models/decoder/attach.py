"""From an encoder of images and the config's words to the same encoder with a decoder behind it.

Shapes: T tokens of an image, D width of a token.
"""

import math
from dataclasses import replace
from typing import Any

import torch

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.decoder.nets import DECODERS, make_decoder
from fedsim.models.tower import Encoder


def with_decoder(encoder: Encoder, config: ModelConfig, num_classes: int) -> Encoder:
    """Let the encoder's tower give the tokens that ``config.decoder`` reads, and put that behind it.

    The decoder is drawn from torch's global stream. UserError where the encoder is no vision transformer with enough
    blocks, or its patches make no square.
    """
    tower, words = encoder.tower, config.decoder
    assert words is not None, "load_encoder looks at this"
    where = "model.decoder"
    if tower is None or encoder.tokenizer is not None:
        found = f"{words.name} with {config.name}, which is no plain vision transformer"
        raise UserError(where, found, "null, or packaged:vit_small_dino, a timm, open_clip or hf: ViT")
    num_blocks, num_read = len(tower.blocks), DECODERS[words.name].num_blocks
    if num_blocks < num_read:
        found = f"{words.name} with {config.name}, which has {num_blocks} blocks"
        raise UserError(where, found, f"an encoder with {num_read} blocks or more, or linear")
    with torch.no_grad():
        tokens_1TD = tower.stem(torch.zeros(1, 3, encoder.image_size, encoder.image_size))
    num_patches = tokens_1TD.shape[1] - tower.num_prefix_tokens
    grid = math.isqrt(num_patches)
    if tokens_1TD.dim() != 3 or grid * grid != num_patches:
        raise UserError(where, f"{words.name} with {config.name}, which has {num_patches} patches", "a square of them")
    tower.reads = read_blocks(num_blocks, num_read)
    sizes: dict[str, Any] = {"features": tokens_1TD.shape[2], "grid": grid, "image_size": encoder.image_size}
    return replace(encoder, decoder=make_decoder(**words.model_dump(), **sizes, num_classes=num_classes))


def read_blocks(num_blocks: int, num_read: int) -> tuple[int, ...]:
    """Which blocks, from 0, are read: the last, and those before it so that all are evenly spread."""
    return tuple(math.ceil(num_blocks * place / num_read) - 1 for place in range(1, num_read + 1))
