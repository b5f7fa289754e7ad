#!/usr/bin/env bash
# opacus 1.6.0 (torch 2.15.0, numpy 2.4.6, Python 3.11): the gradients of a convolution are those of padding with zeros,
# whatever its padding_mode is.
#
# Expected: the mean of the gradients of the single images is the gradient of the mean loss; or ModuleValidator refuses the
# layer, as it does batch norm, or opacus falls back on torch.func, as it does for layers that it does not know.
# Seen, error of that mean relative to the gradient of the weight, kernel 3, padding 1, values 1 +- 0.2:
#     padding_mode           zeros    reflect    replicate    circular
#     Conv1d, 16             1e-7     0.05       0.05         0.06
#     Conv2d, 16 x 16        5e-7     0.09       0.09         0.09
#     Conv3d, 8 x 8 x 8      6e-7     0.24       0.24         0.25
# The forward pass pads as it is told. compute_conv_grad_sample (opacus/grad_sample/conv.py) lays zeros round the input that
# the layer was given, and does not look at padding_mode. Nothing is raised or said, and the smaller the patches, or the more
# their edges differ from 0, the worse. Exit code 1 if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet opacus==1.6.0 torch==2.15.0 numpy==2.4.6
HOME="$place" "$place/venv/bin/python" -W ignore - <<'PROGRAM'
import torch
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import nn

torch.set_num_threads(1)


def error(convolution, mode, *sides):
    torch.manual_seed(0)
    layer = convolution(2, 4, 3, padding=1, padding_mode=mode)
    images = 1 + 0.2 * torch.randn(4, 2, *sides)
    assert ModuleValidator.validate(layer) == []

    def loss(model):
        return model(images).square().flatten(1).mean(1).mean()

    right = torch.autograd.grad(loss(layer), layer.weight)[0]
    loss(GradSampleModule(layer)).backward()
    return ((layer.weight.grad_sample.mean(0) - right).norm() / right.norm()).item()


MODES = "zeros", "reflect", "replicate", "circular"
for convolution, sides, least in ((nn.Conv1d, (16,), 0.04), (nn.Conv2d, (16, 16), 0.08), (nn.Conv3d, (8, 8, 8), 0.2)):
    zeros, *others = errors = [error(convolution, mode, *sides) for mode in MODES]
    print(convolution.__name__, [f"{value:.2g}" for value in errors])
    assert zeros < 1e-5
    assert min(others) > least
PROGRAM
