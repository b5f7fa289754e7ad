"""A network as it is, without blocks that could be told apart: a trial run says what it gives."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.hub import user_errors
from fedsim.models.tower import Encoder

HALF = (0.5, 0.5, 0.5)


def refusals(config: ModelConfig, image_size: int) -> AbstractContextManager[None]:
    """UserErrors for what fails inside, over the network's options or the size of the images."""
    return user_errors(place(config, image_size), "options that it takes, and images that its levels divide")


def place(config: ModelConfig, image_size: int) -> str:
    """Where a network is wrong that was made of these."""
    return f"model.options of {config.name}, data.image_size {image_size}"


def plain_encoder(net: nn.Module, config: ModelConfig, image_size: int, class_names: Sequence[str]) -> Encoder:
    """Wrap a network for pixels in -1..1; it gives features (N, W), or the scores (N, C, H, W) of every pixel.

    UserError for images that it cannot take, and for outputs of another kind.
    """
    width, per_pixel = try_out(net, config, image_size, len(class_names))
    return Encoder(net, width, HALF, HALF, image_size, per_pixel=per_pixel)


def try_out(net: nn.Module, config: ModelConfig, image_size: int, num_classes: int) -> tuple[int, bool]:
    """Put a network in eval mode; return the width of what it gives, and whether it scores pixels.

    UserError as above.
    """
    with refusals(config, image_size), torch.no_grad():
        outputs: object = net.eval()(torch.zeros(2, 3, image_size, image_size))
    where = place(config, image_size)
    wanted = f"(N, width) features, or (N, {num_classes}, {image_size}, {image_size}) scores of every pixel"
    if not isinstance(outputs, Tensor):
        raise UserError(where, f"outputs of type {type(outputs).__name__}", wanted)
    shape = tuple(outputs.shape)
    per_pixel = len(shape) == 4
    fits = shape[1:] == (num_classes, image_size, image_size) if per_pixel else len(shape) == 2 and shape[1] > 0
    if not fits or shape[0] != 2:
        raise UserError(where, f"outputs of shape {shape} for two inputs", wanted)
    if outputs.dtype != torch.float32 or not torch.isfinite(outputs).all():
        raise UserError(where, f"outputs of {outputs.dtype}, or nan or inf", "finite numbers of float32")
    return shape[1], per_pixel
