"""The slim VGG16 of PRR-FL (Chen et al., MICCAI 2021): a network with BatchNorm after every layer.

This file needs torch alone: an exported network of this kind has a copy of it.
"""

from collections import OrderedDict

from torch import Tensor, nn

#: Output channels of the convolutions between two poolings.
STAGES = ((32, 32), (64, 64), (128, 128, 128), (128, 128, 128), (256, 256, 256))
WIDTH = 64


class SlimVGG16(nn.Module):
    """Thirteen 3 x 3 convolutions and one linear layer, none with a bias: (N, 3, H, W) to (N, 64) features.

    H and W are at least 32. The class scores are the work of the head that follows.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for number, widths in enumerate(STAGES, start=1):
            layers: list[nn.Module] = []
            for width in widths:
                layers.append(_normalised("conv", nn.Conv2d(channels, width, 3, padding=1, bias=False), width))
                channels = width
            self.add_module(f"layer{number}", nn.Sequential(*layers, nn.MaxPool2d(2)))
        self.fc1 = _normalised("linear", nn.Linear(channels, WIDTH, bias=False), WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        *stages, last = self.children()
        for stage in stages:
            images = stage(images)
        features: Tensor = last(images.mean((2, 3)))
        return features


def _normalised(name: str, layer: nn.Module, width: int) -> nn.Sequential:
    norm = nn.BatchNorm1d(width) if isinstance(layer, nn.Linear) else nn.BatchNorm2d(width)
    return nn.Sequential(OrderedDict([(name, layer), ("bn", norm), ("relu", nn.ReLU())]))
