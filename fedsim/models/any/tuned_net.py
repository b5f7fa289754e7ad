"""Any network of which LoRA layers train, for a block of clients at once; everything else of it is frozen.

The network runs once over the images of all clients, one client's behind another's. It stays in eval mode: running
statistics of BatchNorm are as they were stored, and nothing is dropped out.

Shapes: K clients in a block, B images per client, N = K B, W feature width.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from fedsim.config.words import ModelConfig
from fedsim.errors import UserError
from fedsim.models.any.conv import LoRAConv2d
from fedsim.models.any.layers import add_anywhere
from fedsim.models.any.net import LibraryNet
from fedsim.models.any.probe import probe
from fedsim.models.lora import LoraLayer
from fedsim.models.stacked import Counting
from fedsim.models.tower import Encoder
from fedsim.models.tuned_tower import TunedModel


class TunedNet(TunedModel):
    """A network whose ``layers`` are anywhere in it; see ``tune_net``."""

    freezes = False

    def __init__(
        self,
        config: ModelConfig,
        encoder: Encoder,
        layers: Sequence[LoraLayer],
        num_classes: int,
        device: torch.device,
        repeated: str | None,
    ) -> None:
        """``repeated``: the path of a layer that a forward pass goes through more than once."""
        super().__init__(config, encoder, layers, num_classes, device)
        self._repeated = repeated

    @property
    def num_layers(self) -> int:
        """Adapted layers."""
        return len(self.lora_layers)

    def with_shifts(self) -> Self:
        for layer in self.lora_layers:
            if isinstance(layer.module, LoRAConv2d) and len(layer.module.slices) > 1:
                found = f"{layer.path}, a convolution of groups, with a method that changes the frozen weights"
                raise UserError("model.lora.target", found, "layers without groups: none of these holds such a change")
        return super().with_shifts()

    def freeze(self, pixels: Tensor) -> Tensor:
        return pixels

    def encode(
        self, params: Mapping[str, Tensor], fixed: Tensor, *, training: bool, counting: Counting | None
    ) -> Tensor:
        del training
        images = fixed.flatten(0, 1)
        self.bind(params, images, counting)
        with self._precision():
            out: Tensor = self.net(images)
        return out.reshape(*fixed.shape[:2], *out.shape[1:])

    def hides_examples(self) -> str | None:
        convolutions = [layer.path for layer in self.lora_layers if isinstance(layer.module, LoRAConv2d)]
        return convolutions[0] if convolutions else self._repeated


def tune_net(config: ModelConfig, encoder: Encoder, num_classes: int, device: torch.device) -> TunedNet:
    """Put LoRA layers into a network, and try out whether each does what it should.

    UserError where a layer does not, see ``probe``.
    """
    net, lora = encoder.net, config.lora
    assert isinstance(net, LibraryNet), "load_encoder makes it one"
    assert lora is not None, "LoRA layers are what trains"
    if lora.layers is not None:
        found = f"{list(lora.layers)} with {config.name}, whose layers have no numbers here"
        raise UserError("model.lora.layers", found, "null; words of model.lora.target may be longer: layers.3.fc1")
    net.requires_grad_(False).eval().to(device)
    layers = add_anywhere(net.net, "net", lora, in_bf16=config.precision == "bf16")
    repeated = probe(net, layers, config, encoder.image_size, device)
    return TunedNet(config, encoder, layers, num_classes, device, repeated)
