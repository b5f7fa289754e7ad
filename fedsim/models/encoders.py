"""From the ``model`` section of a config to an Encoder."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from fedsim.catalogue.functions import function_of, is_import_path
from fedsim.catalogue.models import MODELS, OWN_MODEL, WEIGHT_FILES, ModelRow, model_row
from fedsim.config.mistakes import nearest
from fedsim.config.words import ALL_LINEAR, ModelConfig
from fedsim.data.digests import content_digests
from fedsim.errors import UserError
from fedsim.models.any.net import LibraryNet
from fedsim.models.attention import ClipAttention
from fedsim.models.decoder.attach import with_decoder
from fedsim.models.own import own_encoder
from fedsim.models.tower import Adaptable, Encoder, Tower
from fedsim.models.weights import check_values

__all__ = ["Encoder", "Tower", "library_model", "load_encoder"]

HUGGING, CLIP_FOLDER = "hf:", "open_clip:local-dir:"


@contextmanager
def _random_from(seed: int) -> Iterator[None]:
    """Let torch's global stream begin at ``seed``, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def load_library(config: ModelConfig) -> None:
    """Import what a model of the catalogue is built with. What is amiss, such as its name, is told by who builds it."""
    row = model_row(config.name)
    if row is not None and row is not OWN_MODEL:
        with suppress(ImportError):
            function_of(row.network)


def library_model(config: ModelConfig, image_size: int, seed: int, class_names: Sequence[str] = ()) -> nn.Module:
    """Build the model that ``config.name`` and ``config.weights`` ask for, just as its library makes it.

    A timm model without classifier (also for ``packaged:vit_small_dino``), a whole open_clip model with its text
    tower, a BERT, RoBERTa or ViT of transformers without classifier, or a fresh network, which tells ``class_names``
    apart where it scores pixels; on the CPU and in float32, whatever the type of the stored weights. ``seed`` decides
    what is random: all weights with ``weights: random``, nothing otherwise. torch's global random stream is left as it
    was. UserError for unknown names, unreachable, unfitting or infinite weights, image sizes that are no multiple of
    the patch size.
    """
    row = _row(config)
    with _random_from(seed):
        model: nn.Module = function_of(row.network)(config, image_size, class_names)
    is_file = str(config.weights).endswith(WEIGHT_FILES)
    check_values(model, f"model.weights {config.weights}" if is_file else f"model.name {config.name}")
    return model


def first_network(config: ModelConfig, image_size: int, seed: int, class_names: Sequence[str]) -> nn.Module:
    """Build ``library_model`` of the same arguments, or the network that a function of the user's returns."""
    if not is_import_path(config.name):
        return library_model(config, image_size, seed, class_names)
    with _random_from(seed):
        return own_encoder(config, image_size, class_names).net


def load_encoder(config: ModelConfig, image_size: int, class_names: Sequence[str], seed: int) -> Encoder:
    """Build the encoder around ``library_model(config, image_size, seed, class_names)``, or your own, in eval mode.

    ``class_names`` fill the prompts of a text classifier and count the scores of a pixel. Parameters require
    gradients with ``train: all`` only. With LoRA a net that is no plain transformer is a ``LibraryNet``. UserError as
    there, for a decoder on such a net, and for LoRA where it could not be exported.
    """
    if is_import_path(config.name):
        with _random_from(seed):
            encoder = own_encoder(config, image_size, class_names)
    else:
        model = library_model(config, image_size, seed, class_names)
        encoder = function_of(_row(config).encoder)(model, config, image_size, class_names)
    if encoder.tower is not None and not encoder.tower.blocks:
        raise UserError(f"model.name {config.name}", "no transformer block", "at least one")
    if config.lora is not None:
        _check_lora(config, encoder.tower)
        if not isinstance(encoder.net, Adaptable):
            encoder = replace(encoder, net=LibraryNet(encoder.net).eval())
    if config.decoder is not None:
        with _random_from(seed):
            encoder = with_decoder(encoder, config, len(class_names))
    encoder.net.requires_grad_(config.train == "all")
    frozen = None if config.train == "all" else digest_of(files_of(config)) or encoder.sha256
    return replace(encoder, seed=seed, frozen_sha256=frozen)


def files_of(config: ModelConfig) -> list[Path]:
    """The files that a network is read from which may have another content tomorrow: the user's, and a hub's copies."""
    if str(config.weights).endswith(WEIGHT_FILES):
        return [Path(str(config.weights))]
    if config.weights == "random":
        return []
    # Late: what these modules import is there where such a network was built.
    if config.name.startswith(HUGGING):
        from fedsim.models.folders import file_of, weight_files

        source = config.name.removeprefix(HUGGING)
        settings = file_of(source, "config.json")
        return [*weight_files(source), *([] if settings is None else [settings])]
    if config.name.startswith(CLIP_FOLDER):
        from fedsim.models.clip_weights import CONFIG_FILE, file_in

        folder = Path(config.name.removeprefix(CLIP_FOLDER))
        return [Path(file_in(str(folder), f"model.name {config.name}")), folder / CONFIG_FILE]
    return []


def digest_of(files: Sequence[Path]) -> str | None:
    """Return the sha256 of a file, or of the digests of several, wherever they stand and whatever they are called."""
    digests = sorted(content_digests(files))
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _row(config: ModelConfig) -> ModelRow:
    """Return the catalogue's row of the model; UserError for a model of the user's own, and for an unknown name."""
    row = model_row(config.name)
    if row is None or row is OWN_MODEL:
        raise UserError("model.name", repr(config.name), nearest(config.name, MODELS))
    return row


def _check_lora(config: ModelConfig, tower: Tower | None) -> None:
    assert config.lora is not None
    if tower is None:
        _check_any(config)
        return
    is_clip = any(type(part) is ClipAttention for part in tower.modules())
    if config.lora.use_dora and is_clip and set(config.lora.target) & set("qkv"):
        found = f"true with {config.name}, whose attention peft gives no magnitudes"
        raise UserError("model.lora.use_dora", found, "false, or target: c_fc or c_proj")
    outputs = [word for word in config.lora.target if word in ("proj", ALL_LINEAR)]
    if outputs and is_clip:
        # peft up to 0.21 adds the update of a MultiheadAttention's out_proj twice (huggingface/peft#3774), so
        # no adapter would be right both for it and for the version that repairs it.
        raise UserError(
            "model.lora.target",
            f"{outputs[0]} with {config.name}, whose attention peft cannot adapt there",
            "q, k, v, c_fc or c_proj",
        )


def _check_any(config: ModelConfig) -> None:
    """UserError for what needs a plain transformer."""
    found = f"{config.name}, which is no plain transformer"
    if config.name.startswith("open_clip:"):
        # Its library's model is both towers, whose attention PyTorch calls past its layers.
        raise UserError("model.name", f"{found}, with train: lora", "an open_clip ViT; else train: head or all")
    if config.submodel is not None:
        raise UserError("model.submodel", f"a sub-model of {found}", "null, or a plain ViT, BERT or RoBERTa")
