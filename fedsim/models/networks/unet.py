"""HarmoFL's U-Net (Jiang et al., AAAI 2022) and its normalisation, which keeps no statistics.

This file needs torch alone: an exported network of HarmoFL's has a copy of it.

Shapes: N images, C classes, F features of the first level.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_LEVELS = 4


class UNet(nn.Module):
    """Four levels of two 3 x 3 convolutions and a pooling, a bottom, and the way back: (N, 3, H, W) to (N, C, H, W).

    H and W are multiples of 16. Level l has F * 2^l features; the convolutions before a normalisation have no bias.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        widths = [num_features * 2**level for level in range(NUM_LEVELS + 1)]
        self.down = nn.ModuleList(_level(before, width) for before, width in zip([3, *widths], widths, strict=False))
        pairs = list(zip(widths[1:], widths, strict=False))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, width, 2, stride=2) for below, width in pairs)
        self.merge = nn.ModuleList(_level(2 * width, width) for _, width in pairs)
        self.scores = nn.Conv2d(num_features, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        first, *others = self.down
        levels = [first(images)]
        for level in others:
            levels.append(level(F.max_pool2d(levels[-1], 2)))
        found = levels.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            found = merge(torch.cat([up(found), levels.pop()], dim=1))
        scores: Tensor = self.scores(found)
        return scores


def _level(before: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


class BatchOrImageNorm(nn.BatchNorm2d):
    """Normalises over the batch in training, and each image by itself in evaluation; has no parameters at all."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, affine=False, track_running_stats=False)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) if self.training else F.instance_norm(images, eps=self.eps)


def without_statistics(net: nn.Module, form: Literal["paper", "released"]) -> nn.Module:
    """Replace every BatchNorm by one without parameters and running statistics, and return ``net``.

    ``released``: evaluation normalises over its batch, as in the published code, so that what a network says of an
    image depends on the others of the batch; ``paper``: over each image.
    """
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                width = child.num_features
                batch = nn.BatchNorm2d(width, affine=False, track_running_stats=False)
                setattr(parent, name, BatchOrImageNorm(width) if form == "paper" else batch)
    return net
