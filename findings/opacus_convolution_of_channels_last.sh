#!/usr/bin/env bash
# opacus 1.6.0 (torch 2.15.0, numpy 2.4.6, Python 3.11): the gradients of a two-dimensional convolution are unrelated to the
# right ones where the channels of its input lie last in memory, as they do behind ConvNeXt's norms and a ViT's tokens.
#
# Expected: the mean of the gradients of the single images is the gradient of the mean loss, as a tensor's values do not
# depend on how they are stored.
# Seen, cosine between the two for the weight of one Conv2d(8, 5, 3, padding=1), four images of 8 x 8:
#     input as it comes                                             1.00
#     the same with memory_format=torch.channels_last              -0.01
#     behind LayerNorm over channels, permuted there and back      -0.04    ConvNeXt before it halves its images
#     behind tokens, transpose(1, 2).reshape(4, 8, 8, 8)           -0.12    decoders on a ViT
#     Conv3d, torch.channels_last_3d                                1.00
# unfold2d (opacus/utils/tensor_utils.py) cuts its windows by steps of a row's length, whatever the strides of the padded
# input are: values of other pixels and channels come together. Nothing is raised; what is clipped and gets noise is not the
# gradient. ModuleValidator has no objection, and with ghost clipping the norms are of the same wrong gradients. Exit code 1
# if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet opacus==1.6.0 torch==2.15.0 numpy==2.4.6
HOME="$place" "$place/venv/bin/python" -W ignore - <<'PROGRAM'
import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.validators import ModuleValidator
from torch import nn

torch.set_num_threads(1)


class Network(nn.Module):
    def __init__(self, before, convolution):
        super().__init__()
        self.norm, self.before, self.convolution = nn.LayerNorm(8), before, convolution

    def forward(self, images):
        return self.convolution(self.before(self.norm, images))


def cosine(before, images, convolution=nn.Conv2d):
    torch.manual_seed(0)
    network = Network(before, convolution(8, 5, 3, padding=1))
    assert ModuleValidator.validate(network) == []

    def loss(model):
        return model(images).square().flatten(1).sum(1).mean()

    right = torch.autograd.grad(loss(network), network.convolution.weight)[0]
    of_each = GradSampleModule(network)
    loss(of_each).backward()
    mean = network.convolution.weight.grad_sample.mean(0)
    norms = network.convolution.weight.grad_sample.flatten(1).norm(dim=1)
    of_each.to_standard_module()
    ghost = GradSampleModuleFastGradientClipping(network, max_grad_norm=1.0)
    loss(ghost).backward()
    assert torch.allclose(network.convolution.weight._norm_sample, norms, rtol=1e-4)
    return torch.nn.functional.cosine_similarity(mean.flatten(), right.flatten(), dim=0).item()


def as_it_is(norm, images):
    return images


def as_convnext(norm, images):
    return norm(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def as_tokens(norm, tokens):
    return norm(tokens).transpose(1, 2).reshape(4, 8, 8, 8)


torch.manual_seed(1)
images, tokens, volumes = torch.randn(4, 8, 8, 8), torch.randn(4, 64, 8), torch.randn(4, 8, 6, 6, 6)
seen = {
    "as it comes": cosine(as_it_is, images),
    "channels_last": cosine(as_it_is, images.to(memory_format=torch.channels_last)),
    "ConvNeXt": cosine(as_convnext, images),
    "tokens": cosine(as_tokens, tokens),
    "volumes": cosine(as_it_is, volumes.to(memory_format=torch.channels_last_3d), nn.Conv3d),
}
print({name: round(value, 3) for name, value in seen.items()})
assert all(seen[name] > 0.9999 for name in ("as it comes", "volumes"))
assert all(abs(seen[name]) < 0.6 for name in ("channels_last", "ConvNeXt", "tokens"))
PROGRAM
