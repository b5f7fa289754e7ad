#!/usr/bin/env bash
# opacus 1.6.0 (torch 2.15.0, numpy 2.4.6, Python 3.11): in an EmbeddingBag a code that a person has three times counts
# once in that person's gradient, with mode="max" there is no gradient, and padding is trained.
#
# Expected: the mean of the gradients of the single samples is the gradient of the mean loss; or ModuleValidator refuses the
# layer, as it does batch norm.
# Seen, error of that mean relative to the gradient of the weight, bags of 12 codes:
#     codes of a bag                all different    drawn from 4    from 4, code 0 is padding
#     EmbeddingBag, mode sum            0               0.71             0.75
#     EmbeddingBag, mode mean           0               0.70             0.84
#     EmbeddingBag, mode max            1               1                1
#     Embedding, then their sum         0               0                0.40
# compute_embeddingbag_gradsampler (opacus/grad_sample/embedding.py) adds by gsm[i][indices] += ..., which takes an index
# that occurs several times once; it has no case for max, and nothing there looks at padding_idx. The more often somebody
# has a code, as with diagnoses or words, the more of it is lost, and clipping goes by the wrong norm. Nothing is raised or
# said. Exit code 1 if this is no longer so.
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
BAGS, CODES = 4, 12


def error(layer, codes):
    assert ModuleValidator.validate(layer) == []
    if isinstance(layer, nn.EmbeddingBag):
        inputs = codes.flatten(), torch.arange(BAGS) * CODES
    else:
        inputs = (codes,)

    def loss(model):
        return model(*inputs).reshape(BAGS, -1, 3).sum(1).square().sum(1).mean()

    right = torch.autograd.grad(loss(layer), layer.weight)[0]
    loss(GradSampleModule(layer)).backward()
    return round(((layer.weight.grad_sample.mean(0) - right).norm() / right.norm()).item(), 2)


def layers(**options):
    for mode in ("sum", "mean", "max"):
        yield nn.EmbeddingBag(CODES, 3, mode=mode, **options)
    yield nn.Embedding(CODES, 3, **options)


torch.manual_seed(0)
different = torch.stack([torch.randperm(CODES) for _ in range(BAGS)])
few = torch.randint(0, 4, (BAGS, CODES))
seen = [[error(layer, different) for layer in layers()]]
seen += [[error(layer, few) for layer in layers()]]
seen += [[error(layer, few) for layer in layers(padding_idx=0)]]
print(*seen, sep="\n")
assert seen[0] == [0, 0, 1, 0]
assert min(seen[1][:2]) > 0.5 and seen[1][2:] == [1, 0]
assert min(seen[2]) > 0.3
PROGRAM
