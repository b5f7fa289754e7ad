"""Decoders: from the tokens of a vision transformer's patches to the class scores of every pixel.

This file needs torch and safetensors alone: a run folder has a copy of it beside what was trained. All is products and
sums, also resizing, whose matrices are torch's own interpolation of the unit vectors: a GPU's kernels for pooling and
enlarging have no way back that gives the same bits every time. Normalisation is over channels, so that no image's
scores depend on the others of its batch.

Shapes: N images, L blocks that are read, P = G G patches, row by row, D width of a token, W width of the decoder, C
classes, S side of an image in pixels.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

POOLS = (1, 2, 3, 6)  # sides of the pyramid pooling's maps, as published
FINER = (4, 2, 1, 1)  # how much finer than the patches the maps are, that of the lowest block first


class Decoder(nn.Module):
    """What all have in common: how many blocks they read, L, and the ``words`` that they were made from."""

    num_blocks = 1
    words: dict[str, Any]


class LinearDecoder(Decoder):
    """Scores each patch by its token after the last block, enlarged bilinearly: (N, 1, P, D) to (N, C, S, S).

    The linear head of Oquab et al., DINOv2, TMLR 2024, section 7.4; a LayerNorm stands where it has a BatchNorm.
    """

    enlarge: Tensor

    def __init__(self, features: int, grid: int, image_size: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.scores = nn.Linear(features, num_classes)
        self.register_buffer("enlarge", interpolation(grid, image_size), persistent=False)

    def forward(self, tokens_NLPD: Tensor) -> Tensor:
        scores = as_map(self.scores(self.norm(tokens_NLPD[:, -1])))
        return resized(scores, self.enlarge).movedim(3, 1)


class UperNetLight(Decoder):
    """A pyramid over the tokens of four blocks, pooled, fused and enlarged: (N, 4, P, D) to (N, C, S, S).

    A light form of UPerNet (Xiao et al., Unified perceptual parsing for scene understanding, ECCV 2018, section 3) on a
    plain ViT, as He et al. have it (Masked autoencoders, CVPR 2022, appendix A.4). Here as there: four blocks, evenly
    spread; lateral layers; transposed convolutions that make the lower blocks' maps finer, with kernels of their own
    stride; pooling of the deepest map to 1, 2, 3 and 6 squared; the way down from deep to fine by sums; fusion of all
    maps at the finest. Lighter: tokens become W channels first; the deepest map is not halved; 1 x 1 in place of 3 x 3
    convolutions, so that every layer is linear over channels; LayerNorm in place of BatchNorm; pooled maps are added to
    the deepest one, and those smaller than the patches' alone.
    """

    num_blocks = 4
    twice: Tensor
    four_times: Tensor
    enlarge: Tensor

    def __init__(self, features: int, grid: int, image_size: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Level(features, width, finer) for finer in FINER)
        self.pools = nn.ModuleList(Pool(width, grid, side) for side in POOLS if side < grid)
        self.fuse = nn.ModuleList(nn.Linear(width, width) for _ in FINER)
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, num_classes)
        self.register_buffer("twice", interpolation(grid, 2 * grid), persistent=False)
        self.register_buffer("four_times", interpolation(2 * grid, 4 * grid), persistent=False)
        self.register_buffer("enlarge", interpolation(4 * grid, image_size), persistent=False)

    def forward(self, tokens_NLPD: Tensor) -> Tensor:
        finest, finer, plain, deepest = (
            level(tokens) for level, tokens in zip(self.levels, tokens_NLPD.unbind(1), strict=True)
        )
        found = deepest
        for pool in self.pools:
            found = found + pool(deepest)
        fused = self.fuse[3](found.relu())
        found = plain + found
        fused = fused + self.fuse[2](found.relu())
        found = finer + resized(found, self.twice)
        fused = resized(fused, self.twice) + self.fuse[1](found.relu())
        found = finest + resized(found, self.four_times)
        fused = resized(fused, self.four_times) + self.fuse[0](found.relu())
        return resized(self.scores(self.norm(fused).relu()), self.enlarge).movedim(3, 1)


class Level(nn.Module):
    """One block's tokens (N, P, D) as a map (N, f G, f G, W), ``finer`` times as fine as the patches.

    Its second layer is a transposed convolution with stride f and kernel f x f.
    """

    def __init__(self, features: int, width: int, finer: int) -> None:
        super().__init__()
        self.finer = finer
        self.norm = nn.LayerNorm(features)
        self.reduce = nn.Linear(features, width)
        self.refine = nn.Linear(width, finer * finer * width)

    def forward(self, tokens_NPD: Tensor) -> Tensor:
        patches = as_map(self.refine(self.reduce(self.norm(tokens_NPD)).relu()))
        inside: Tensor = patches.unflatten(3, (self.finer, self.finer, -1))
        return inside.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class Pool(nn.Module):
    """A map (N, G, G, W) averaged to ``side`` squared, through a linear layer, and back at its size."""

    average: Tensor
    enlarge: Tensor

    def __init__(self, width: int, grid: int, side: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("average", averaging(grid, side), persistent=False)
        self.register_buffer("enlarge", interpolation(side, grid), persistent=False)

    def forward(self, found_NGGW: Tensor) -> Tensor:
        return resized(self.linear(resized(found_NGGW, self.average)).relu(), self.enlarge)


def as_map(tokens_NPW: Tensor) -> Tensor:
    """Patches (N, P, W) at their places, (N, G, G, W)."""
    side = math.isqrt(tokens_NPW.shape[1])
    found: Tensor = tokens_NPW.unflatten(1, (side, side))
    return found


def resized(map_NHHW: Tensor, matrix: Tensor) -> Tensor:
    """A map (N, H, H, W) with both axes multiplied by ``matrix`` (I, H): (N, I, I, W)."""
    rows_NWIH = (map_NHHW.movedim(3, 1).mT @ matrix.mT).mT
    return (rows_NWIH @ matrix.mT).movedim(1, 3)


def interpolation(before: int, after: int) -> Tensor:
    """The matrix (after, before) that torch's bilinear interpolation multiplies an axis by."""
    units = torch.eye(before)[None]
    return F.interpolate(units, size=after, mode="linear", align_corners=False)[0].mT.contiguous()


def averaging(before: int, after: int) -> Tensor:
    """The same of torch's adaptive average pooling."""
    return F.adaptive_avg_pool1d(torch.eye(before)[None], after)[0].mT.contiguous()


DECODERS: dict[str, Any] = {"linear": LinearDecoder, "upernet_light": UperNetLight}


def make_decoder(name: str, **words: Any) -> Decoder:
    """A decoder by its name, with random weights; ``words``: its own arguments."""
    decoder: Decoder = DECODERS[name](**words)
    decoder.words = {"name": name, **words}
    return decoder


class Decoded(nn.Module):
    """A transformer as its library makes it, with a decoder behind: images (N, 3, S, S) to scores (N, C, S, S).

    ``reads``: the paths of the blocks that the decoder reads, lowest first. Images are normalised as ``net`` wants
    them, and a network of open_clip's takes them by ``encode_image``.
    """

    def __init__(self, net: Any, decoder: Decoder, reads: Sequence[str], num_prefix_tokens: int) -> None:
        super().__init__()
        self.net, self.decoder = net, decoder
        seen: dict[str, Tensor] = {}
        for path in reads:

            def keep(block: nn.Module, given: Any, tokens: Tensor, path: str = path) -> None:
                del block, given
                seen[path] = tokens[:, num_prefix_tokens:]

            net.get_submodule(path).register_forward_hook(keep)
        self._tokens: Callable[[], Tensor] = lambda: torch.stack([seen[path] for path in reads], 1)

    def forward(self, images: Tensor) -> Tensor:
        getattr(self.net, "encode_image", self.net)(images)
        scores: Tensor = self.decoder(self._tokens())
        return scores


def decoded(model: Any, folder: str) -> Decoded:
    """Return ``model``, a network of its library's or peft's, with the decoder in ``folder`` behind it, frozen."""
    words = json.loads(Path(folder, "decoder.json").read_text("utf-8"))
    decoder = make_decoder(**words["decoder"])
    decoder.load_state_dict(load_file(folder + "/decoder.safetensors"))
    net = model.get_base_model() if hasattr(model, "get_base_model") else model
    whole = Decoded(net, decoder, words["reads"], words["num_prefix_tokens"])
    return whole.eval().requires_grad_(False)
