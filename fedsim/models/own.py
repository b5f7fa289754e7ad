"""A network that somebody's own function returns, looked at before anything is made of it."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from fedsim.catalogue.functions import call_own
from fedsim.catalogue.models import import_model
from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.machine.sealed import digest_tensors
from fedsim.models.networks.volumes import width_of
from fedsim.models.plain import plain_encoder, try_out
from fedsim.models.tower import Encoder
from fedsim.models.weights import check_values


def own_encoder(config: ModelConfig, image_size: int, class_names: Sequence[str]) -> Encoder:
    """Call the function that ``config.name`` leads to with the model section and the images' side.

    A plain module is wrapped as ``plain_encoder`` does. UserError, of one line, for whatever else it returns that is
    no ``Encoder`` as described there.
    """
    thing = "a torch module or a fedsim.models.encoders.Encoder"
    made = call_own("model.name", config.name, import_model(config.name), thing, config, image_size)
    where = f"model.name {config.name}"
    net = made.net if isinstance(made, Encoder) else made
    if not isinstance(net, nn.Module):
        found = f"a function that returns {type(made).__name__}"
        raise UserError(where, found if made is net else f"an Encoder around {type(net).__name__}", thing)
    _check_net(net, config, where)
    if isinstance(made, Encoder):
        _check_encoder(made, config, image_size, len(class_names))
        encoder = made
    else:
        encoder = plain_encoder(net, config, image_size, class_names)
    if encoder.per_pixel and config.train == "head":
        raise UserError("model.train", f"head with {config.name}, which scores pixels without a head", "all or lora")
    return replace(encoder, sha256=digest_tensors(net.state_dict()))


def _check_net(net: nn.Module, config: ModelConfig, where: str) -> None:
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UserError(where, f"tensor {name} of {tensor.dtype}", "float32; model.precision says what it becomes")
    if config.train == "all":
        if not list(net.parameters()):
            raise UserError("model.train", f"all with {config.name}, which has no parameters", "head")
        for name, part in net.named_modules():
            if isinstance(part, _DropoutNd) and part.p > 0:
                found = f"dropout of {part.p:g} at {name or 'the top'}"
                raise UserError(where, found, "none: a run draws all random numbers from its seed")
    check_values(net, where)


def _check_encoder(encoder: Encoder, config: ModelConfig, image_size: int, num_classes: int) -> None:
    where = f"model.name {config.name}"
    if encoder.image_size != image_size:
        raise UserError(where, f"an Encoder with image_size {encoder.image_size}", f"{image_size}")
    if (encoder.text_features, encoder.logit_scale, encoder.tokenizer) != (None, None, None):
        raise UserError(where, "an Encoder with a tokenizer or a text classifier", "one for images alone")
    for key in ("mean", "std"):
        values = getattr(encoder, key)
        numbers = isinstance(values, tuple) and len(values) == 3 and all(isinstance(part, float) for part in values)
        if not numbers or (key == "std" and min(values) <= 0):
            raise UserError(where, f"an Encoder with {key} {values!r}", "three floats, those of std above 0")
    if encoder.whole_volumes:
        given = width_of(encoder.net, config, image_size, image_size), False
    else:
        given = try_out(encoder.net, config, image_size, num_classes)
    if given != (encoder.width, encoder.per_pixel):
        said = f"an Encoder with width {encoder.width} and per_pixel {encoder.per_pixel}"
        raise UserError(where, said, f"{given[0]} and {given[1]}, as its net gives")
