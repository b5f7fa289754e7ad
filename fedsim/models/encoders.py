"""From the ``model`` section of a config to an Encoder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from fedsim.config.words import FRESH_MODELS, HUGGING, ModelConfig
from fedsim.errors import UserError
from fedsim.models.attention import ClipAttention
from fedsim.models.fresh import fresh_encoder
from fedsim.models.packaged import ARCHITECTURE, PATCH_SIZE, build_packaged
from fedsim.models.timm_vit import build_timm, check_divides, encoder_of_timm
from fedsim.models.tower import Encoder, Tower
from fedsim.models.weights import check_values

__all__ = ["Encoder", "Tower", "library_model", "load_encoder"]


@contextmanager
def _random_from(seed: int) -> Iterator[None]:
    """Let torch's global stream begin at ``seed``, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def library_model(config: ModelConfig, image_size: int, seed: int) -> nn.Module:
    """Build the model that ``config.name`` and ``config.weights`` ask for, just as its library makes it.

    A timm model without classifier (also for ``packaged:vit_small_dino``), a whole open_clip model with its text
    tower, or a BERT, RoBERTa or ViT of transformers without classifier, on the CPU and in float32, whatever the type
    of the stored weights. ``seed`` decides what is random: all weights with ``weights: random``, nothing otherwise.
    torch's global random stream is left as it was. UserError for unknown names, unreachable, unfitting or infinite
    weights, image sizes that are no multiple of the patch size.
    """
    with _random_from(seed):
        model = _built(config, image_size)
    is_file = str(config.weights).endswith(".safetensors")
    check_values(model, f"model.weights {config.weights}" if is_file else f"model.name {config.name}")
    return model


def _built(config: ModelConfig, image_size: int) -> nn.Module:
    if config.name.startswith("open_clip:"):
        from fedsim.models.clip import build_clip  # late: open_clip takes seconds to import

        return build_clip(config, image_size)
    if config.name.startswith(HUGGING):
        from fedsim.models.hugging import build_hugging  # late: transformers takes seconds to import

        return build_hugging(config, image_size)
    if config.name.startswith("timm:"):
        return build_timm(config, config.name.removeprefix("timm:"), image_size)
    if config.weights is not None:
        return build_timm(config, ARCHITECTURE, image_size)
    check_divides(image_size, PATCH_SIZE, config.name)
    return build_packaged(image_size)


def load_encoder(config: ModelConfig, image_size: int, class_names: Sequence[str], seed: int) -> Encoder:
    """Build the encoder of ``library_model(config, image_size, seed)`` or a fresh network, in eval mode.

    ``class_names`` fill the prompts of a text classifier and count the scores of a pixel. Parameters require
    gradients with ``train: all`` only. UserError as there, and for LoRA on nets that are no plain transformers, or
    where it could not be exported.
    """
    if config.name in FRESH_MODELS:
        with _random_from(seed):
            encoder = fresh_encoder(config, image_size, len(class_names))
    elif config.name.startswith("open_clip:"):
        from fedsim.models.clip import encoder_of_clip

        encoder = encoder_of_clip(library_model(config, image_size, seed), config, image_size, class_names)
    elif config.name.startswith(HUGGING):
        from fedsim.models.hugging import encoder_of_hugging

        encoder = encoder_of_hugging(library_model(config, image_size, seed), config, image_size)
    else:
        encoder = encoder_of_timm(library_model(config, image_size, seed), image_size, config.name)
    if encoder.tower is not None and not encoder.tower.blocks:
        raise UserError(f"model.name {config.name}", "no transformer block", "at least one")
    if config.lora is not None:
        _check_lora(config, encoder.tower)
    encoder.net.requires_grad_(config.train == "all")
    return replace(encoder, seed=seed)


def _check_lora(config: ModelConfig, tower: Tower | None) -> None:
    if tower is None:
        raise UserError(
            "model.name",
            f"{config.name}, which is no plain transformer, with train: lora",
            "packaged:, a timm VisionTransformer, open_clip ViT, hf: BERT, RoBERTa or ViT; else train: head or all",
        )
    assert config.lora is not None
    if "proj" in config.lora.target and any(type(part) is ClipAttention for part in tower.modules()):
        # peft up to 0.21 adds the update of a MultiheadAttention's out_proj twice (huggingface/peft#3774), so
        # no adapter would be right both for it and for the version that repairs it.
        raise UserError(
            "model.lora.target",
            f"proj with {config.name}, whose attention peft cannot adapt there",
            "q, k, v, c_fc or c_proj",
        )
