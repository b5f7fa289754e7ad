"""From the ``model`` section of a config to the server's model and the clients'."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.machine.memory import own_pages
from fedsim.models.any.apart import check_apart
from fedsim.models.any.tuned_net import tune_net
from fedsim.models.encoders import load_encoder
from fedsim.models.networks.volumes import require_volumes
from fedsim.models.stacked import FrozenEncoder, StackedModel
from fedsim.models.submodel.folder import load_submodel
from fedsim.models.submodel.model import HeldModel
from fedsim.models.tower import Encoder
from fedsim.models.tuned_tower import tune
from fedsim.models.whole_net import WholeNet


def stack(config: ModelConfig, encoder: Encoder, num_classes: int, device: torch.device) -> StackedModel:
    """Return a model for blocks of clients around an encoder, of the kind that trains what the config says."""
    if config.train == "lora":
        return (tune_net if encoder.tower is None else tune)(config, encoder, num_classes, device)
    kind = WholeNet if config.train == "all" else FrozenEncoder
    return kind(config, encoder, num_classes, device)


@own_pages()
def build_models(
    config: ModelConfig,
    image_size: int,
    class_names: Sequence[str],
    seed: int,
    device: torch.device,
    slices: int | None = None,
) -> tuple[StackedModel, StackedModel]:
    """Build the server's full model and the one that clients hold, the same object where there is no sub-model.

    ``slices``: those of a volume, where the inputs are volumes.
    UserError for ``submodel.layers`` that the model has not, for a folder that is no sub-model of this model, and for
    an encoder that lets the images of a batch see each other.
    """
    encoder = replace(load_encoder(config, image_size, class_names, seed), slices=slices)
    if encoder.whole_volumes:
        require_volumes(encoder, config)
    check_apart(encoder, config)
    if config.submodel is None:
        full = stack(config, encoder, len(class_names), device)
        return full, full
    assert encoder.tower is not None, "load_encoder refuses a sub-model without a tower"
    last, tensors = len(encoder.tower.blocks) - 1, {}
    layers = config.submodel.layers or range(last + 1)
    if max(layers) > last:
        raise UserError("model.submodel.layers", str(max(layers)), f"layers from 0 to {last}")
    if config.submodel.folder is not None:
        # Before LoRA, bf16 and layouts for speed change what the folder is compared with.
        folder = Path(config.submodel.folder)
        tensors = dict(load_submodel(folder, encoder.tower.blocks, "model.submodel.folder").tensors)
    full = tune(config, encoder, len(class_names), device)
    return full, HeldModel(full, layers, tensors)
