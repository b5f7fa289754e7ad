"""Decoders are what their papers say, made of torch's own convolutions, pooling and interpolation."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.models.decoder.nets import POOLS, Level, UperNetLight, averaging, interpolation, make_decoder, resized

D, G, SIDE, C, W = 12, 4, 30, 3, 6
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def tokens(num_blocks: int) -> Tensor:
    return torch.randn(2, num_blocks, G * G, D, generator=torch.Generator().manual_seed(1))


def drawn(net: nn.Module) -> nn.Module:
    """The same network with no parameter at one or zero."""
    stream = torch.Generator().manual_seed(2)
    for parameter in net.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=stream)
    return net


def larger(maps: Tensor, side: int) -> Tensor:
    return F.interpolate(maps, size=side, mode="bilinear", align_corners=False)


def one_by_one(linear: nn.Linear, maps: Tensor) -> Tensor:
    return F.conv2d(maps, linear.weight[..., None, None], linear.bias)


def normalised(norm: nn.LayerNorm, maps: Tensor) -> Tensor:
    return norm(maps.movedim(1, -1)).movedim(-1, 1)


def grid(tokens_NPD: Tensor) -> Tensor:
    return tokens_NPD.mT.unflatten(2, (G, G))


@pytest.mark.parametrize(("before", "after"), [(4, 8), (5, 56), (3, 7), (8, 5), (1, 6)])
def test_matrices_resize_as_torch_does(before: int, after: int) -> None:
    maps = torch.randn(2, before, before, 3)
    found = resized(maps, interpolation(before, after)).movedim(3, 1)
    torch.testing.assert_close(found, larger(maps.movedim(3, 1), after), **CLOSE)
    if after < before:
        pooled = resized(maps, averaging(before, after)).movedim(3, 1)
        torch.testing.assert_close(pooled, F.adaptive_avg_pool2d(maps.movedim(3, 1), after), **CLOSE)


def test_a_finer_level_is_a_transposed_convolution() -> None:
    level = Level(D, W, 4)
    assert isinstance(drawn(level), Level)
    given = tokens(1)[:, 0]
    reduced = one_by_one(level.reduce, normalised(level.norm, grid(given))).relu()
    kernel = level.refine.weight.view(4, 4, W, W).permute(3, 2, 0, 1)
    bias = level.refine.bias.view(4, 4, W).movedim(2, 0).repeat(1, G, G)
    expected = F.conv_transpose2d(reduced, kernel, stride=4) + bias
    torch.testing.assert_close(level(given).movedim(3, 1), expected, **CLOSE)


def test_linear_scores_patches_and_enlarges_the_scores() -> None:
    decoder = make_decoder("linear", features=D, grid=G, image_size=SIDE, num_classes=C)
    drawn(decoder)
    given = tokens(1)
    norm, scores = decoder.get_submodule("norm"), decoder.get_submodule("scores")
    expected = larger(grid(scores(norm(given[:, 0]))), SIDE)
    torch.testing.assert_close(decoder(given), expected, **CLOSE)


def test_upernet_light_is_pooled_fused_and_enlarged() -> None:
    """The same in convolutions, with the maps beside each other at the finest and one convolution over all of them."""
    net = UperNetLight(features=D, grid=G, image_size=SIDE, num_classes=C, width=W)
    drawn(net)
    given = tokens(4)
    levels = zip(net.levels, given.unbind(1), strict=True)
    finest, finer, plain, last = (level(own).movedim(3, 1) for level, own in levels)
    assert [own.shape[2] for own in (finest, finer, plain, last)] == [16, 8, 4, 4]
    deepest = last
    for pool, side in zip(net.pools, [side for side in POOLS if side < G], strict=True):
        deepest = deepest + larger(one_by_one(pool.linear, F.adaptive_avg_pool2d(last, side)).relu(), G)
    plain = plain + deepest
    finer = finer + larger(plain, 8)
    finest = finest + larger(finer, 16)
    beside = torch.cat([finest.relu(), *(at_finest(own.relu()) for own in (finer, plain, deepest))], 1)
    kernel = torch.cat([linear.weight for linear in net.fuse], 1)[..., None, None]
    fused = F.conv2d(beside, kernel, sum(linear.bias for linear in net.fuse))
    scores = one_by_one(net.scores, normalised(net.norm, fused).relu())
    torch.testing.assert_close(net(given), larger(scores, SIDE), **CLOSE)


def at_finest(maps: Tensor) -> Tensor:
    """Maps doubled until they have four times the side of the patches'."""
    while maps.shape[2] < 4 * G:
        maps = larger(maps, 2 * maps.shape[2])
    return maps


@pytest.mark.parametrize("name", ["linear", "upernet_light"])
def test_every_parameter_has_a_gradient_and_images_do_not_mix(name: str) -> None:
    words = {"width": W} if name == "upernet_light" else {}
    net = make_decoder(name, features=D, grid=G, image_size=SIDE, num_classes=C, **words)
    given = tokens(net.num_blocks)
    net(given).square().sum().backward()
    assert [path for path, own in net.named_parameters() if own.grad is None or not own.grad.any()] == []
    torch.testing.assert_close(net(given)[1:], net(given[1:]), **CLOSE)
