"""A network of which everything trains, for a block of clients at once.

Shapes: K clients in a block, B images per client, N images in all, W feature width, C classes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fedsim.config.words import ModelConfig
from fedsim.kernels.rows import replace_prelu
from fedsim.models.networks.convolutions import replace_convolutions
from fedsim.models.networks.each_client import each_client
from fedsim.models.networks.unet import BatchOrImageNorm
from fedsim.models.specs import Kind, ParamSpec
from fedsim.models.stacked import Counting, StackedModel
from fedsim.models.tower import Encoder, one_channel


class WholeNet(StackedModel):
    """A network whose weights and running statistics are parameters."""

    freezes = False

    def __init__(self, config: ModelConfig, encoder: Encoder, num_classes: int, device: torch.device) -> None:
        super().__init__(config, encoder, num_classes, device)
        names = [name for name, _ in self.net.named_parameters(remove_duplicate=False)]
        self._is_tied = len(names) > len(list(self.net.parameters()))
        if device.type == "cpu":
            replace_convolutions(self.net)
            replace_prelu(self.net)

    def encoder_specs(self) -> dict[str, ParamSpec]:
        norms = {name for name, module in self.net.named_modules() if isinstance(module, _BatchNorm)}
        specs = {}
        for name, parameter in self.net.named_parameters():
            kind: Kind = "norm" if name.rpartition(".")[0] in norms else "body"
            specs[f"net.{name}"] = ParamSpec(tuple(parameter.shape), kind)
        # Buffers that a checkpoint of the net would not hold are constants.
        kept = self.net.state_dict().keys()
        buffers = {name: buffer for name, buffer in self.net.named_buffers() if name in kept}
        return specs | {f"net.{name}": ParamSpec(tuple(buffer.shape), "buffer") for name, buffer in buffers.items()}

    def initial_encoder(self, seed: int) -> dict[str, Tensor]:
        own = dict(self.net.named_parameters("net")) | dict(self.net.named_buffers("net"))
        return {name: value.detach().clone() for name, value in own.items() if name in self.specs}

    def encoder_mixes(self, *, training: bool) -> bool:
        return norms_mix(self.net, training=training)

    def normalises_over_batch(self, image_size: int) -> bool:
        """Whether some BatchNorm layer meets one value per channel and image, so that it cannot train on one image."""
        if self.encoder.tokenizer is not None:
            return False
        state = {name: value.clone() for name, value in self.net.state_dict().items()}
        volume = torch.zeros(1, self.encoder.slices or 1, 3, image_size, image_size, device=self.device)
        inputs = one_channel(volume) if self.encoder.whole_volumes else volume[0]
        self.net.train()
        try:
            with torch.no_grad():
                functional_call(self.net, state, (inputs,))
        except ValueError:
            return True
        finally:
            self.net.eval()
        return False

    def freeze(self, pixels: Tensor) -> Tensor:
        return pixels

    def encode(
        self, params: Mapping[str, Tensor], fixed: Tensor, *, training: bool, counting: Counting | None
    ) -> Tensor:
        with self._precision():
            return self._net(params, fixed, training)

    def _net(self, params: Mapping[str, Tensor], fixed: Tensor, training: bool) -> Tensor:
        own = {name.removeprefix("net."): params[name] for name in params if name.startswith("net.")}
        stacked = {name for name, value in own.items() if value.dim() > len(self.specs[f"net.{name}"].shape)}
        if self.net.training != training:
            self.net.train(training)
        if len(fixed) == 1 and fixed.dim() == 5:
            # With channels last convolutions are faster (slim VGG16, one CPU thread: 20 %, without gradients 40 %).
            fixed = fixed[0].contiguous(memory_format=torch.channels_last)[None]
        return each_client(self.net, own, stacked, fixed, tied=self._is_tied)


def norms_mix(net: nn.Module, *, training: bool) -> bool:
    """Whether a BatchNorm looks at the whole batch: each does in training, without running statistics always."""
    norms = [part for part in net.modules() if isinstance(part, _BatchNorm)]
    return any(training or (part.running_mean is None and not isinstance(part, BatchOrImageNorm)) for part in norms)
