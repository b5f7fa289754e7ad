#!/usr/bin/env bash
# opacus 1.6.0 (torch 2.15.0, torchvision 0.29.2, numpy 2.4.6, Python 3.11): ModuleValidator.fix makes another network of a
# transformer with batch_first=True, of the same weights.
#
# Expected: DPMultiheadAttention computes what nn.MultiheadAttention does, as its error message calls it a drop-in
# replacement and fix hands the weights over.
# Seen, difference of the outputs relative to them, before and after fix, five tokens of width 16:
#     heads                                    1       2       4       8
#     MultiheadAttention()                     0       0       0       0
#     MultiheadAttention(batch_first=True)     0       0.83    1.01    1.29
#     torchvision's VisionTransformer                          1.17
# DPMultiheadAttention.forward (opacus/layers/dp_multihead_attention.py) reshapes (batch * heads, tokens, width of a head)
# to (batch, tokens, width) without exchanging heads and tokens: a token is made of other tokens' heads. A pretrained
# encoder is spoilt by fix alone, and its state_dict has nn.MultiheadAttention's names, so that what was trained privately
# loads into the plain model and is a third thing there. The attention weights that it returns are right, and with one head
# all is. Pull request 825 tells of it and was closed. Exit code 1 if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet opacus==1.6.0 torch==2.15.0 torchvision==0.29.2 numpy==2.4.6
HOME="$place" "$place/venv/bin/python" -W ignore - <<'PROGRAM'
import torch
from opacus.validators import ModuleValidator
from torch import nn
from torchvision.models import VisionTransformer

torch.set_num_threads(1)


@torch.no_grad()
def difference(network, *inputs):
    network.eval()
    plain, private = network(*inputs), ModuleValidator.fix(network).eval()(*inputs)
    if isinstance(plain, tuple):
        assert torch.allclose(plain[1], private[1], atol=1e-6)
        plain, private = plain[0], private[0]
    return ((plain - private).norm() / plain.norm()).item()


HEADS = 1, 2, 4, 8
seen = {}
for batch_first in (False, True):
    torch.manual_seed(0)
    tokens = torch.randn(3, 5, 16)
    layers = [nn.MultiheadAttention(16, heads, batch_first=batch_first) for heads in HEADS]
    seen[batch_first] = [difference(layer, tokens, tokens, tokens) for layer in layers]
torch.manual_seed(0)
vision = VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128)
nn.init.normal_(vision.heads.head.weight)  # zero in a new one
image = difference(vision, torch.randn(4, 3, 32, 32))
print({name: [round(value, 2) for value in values] for name, values in seen.items()}, round(image, 2))
assert max(seen[False]) < 1e-5 and seen[True][0] < 1e-5
assert min(seen[True][1:]) > 0.8
assert image > 1
PROGRAM
