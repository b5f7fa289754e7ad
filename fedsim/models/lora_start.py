"""How LoRA factors begin: drawn at random, or taken out of the frozen weight, as peft's ``init_lora_weights`` says.

What is taken out is added by the factors, so that the layer's output is at first what it was. Of a fused projection
each targeted slice is a matrix of its own.

Shapes: G targeted slices of a layer's output, R rank, D input width, O width of one slice.
Sources: Hu et al., LoRA, ICLR 2022, section 4.1; Meng et al., PiSSA, NeurIPS 2024, equations 2 to 4; Büyükakyüz, OLoRA,
arXiv 2406.01775, algorithm 1; orthogonal: peft 0.21, after datta0's "rethinking LoRA initialisation".
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedsim.config.words import LoraConfig
from fedsim.errors import UserError
from fedsim.seeding import torch_stream

TAKEN = ("pissa", "olora")


def initial_factor(name: str, shape: Sequence[int], seed: int, init: bool | str = True) -> Tensor:
    """Draw one factor from ``seed``, A (G, R, D) or B (G, O, R), for true, gaussian or orthogonal.

    true: A uniform in +-1/sqrt(D), which is kaiming_uniform with a = sqrt(5); gaussian: A normal, its deviation 1 / R;
    B is zero. orthogonal: the rows of A are mixtures of one half of an orthonormal basis of the ranks, the columns of B
    of the other half, so that B A = 0, and neither is zero.
    """
    layer, _, factor = name.rpartition(".")
    if init == "orthogonal":
        return _orthogonal(layer, factor, shape, seed)
    if factor == "lora_b":
        return torch.zeros(*shape)
    stream = torch_stream(seed, f"init/{name}")
    if init == "gaussian":
        return torch.randn(*shape, generator=stream) / shape[1]
    bound = 1 / math.sqrt(shape[-1])
    return torch.rand(*shape, generator=stream) * (2 * bound) - bound


def _orthogonal(layer: str, factor: str, shape: Sequence[int], seed: int) -> Tensor:
    rank = shape[1] if factor == "lora_a" else shape[2]
    own = torch_stream(seed, f"init/{layer}.basis")  # the same for both factors
    basis_GRR = torch.linalg.qr(torch.randn(shape[0], rank, rank, generator=own)).Q
    stream = torch_stream(seed, f"init/{layer}.{factor}")
    half, width = (basis_GRR[:, 0::2], shape[2]) if factor == "lora_a" else (basis_GRR[:, 1::2], shape[1])
    mixed: Tensor = torch.randn(shape[0], width, rank // 2, generator=stream) @ half / 10
    return mixed.mT.contiguous() if factor == "lora_a" else mixed


def take_out(
    linear: nn.Linear, num_slices: int, slices: Sequence[int], config: LoraConfig, path: str
) -> tuple[nn.Linear, tuple[Tensor, Tensor]]:
    """Return a layer whose weight lacks s B A on the targeted slices, and these A (G, R, D) and B (G, O, R), float32.

    pissa: the first R singular values and vectors, the values' roots over s on either side; olora: the first R columns
    of Q and rows of R in a QR decomposition, which take out s Q R. UserError for a rank above the matrix's.
    """
    weight_SOD = linear.weight.detach().float().unflatten(0, (num_slices, -1))
    if config.r > min(weight_SOD.shape[1:]):
        found = f"{config.r} with init_lora_weights: {config.init_lora_weights}"
        raise UserError("model.lora.r", found, f"at most {min(weight_SOD.shape[1:])}, the rank of {path}")
    scaling = config.scaling(config.r)
    chosen = weight_SOD[list(slices)]
    if config.init_lora_weights == "pissa":
        left, values, right = torch.linalg.svd(chosen, full_matrices=False)
        roots = (values[:, : config.r] / scaling).sqrt()
        a, b = roots[:, :, None] * right[:, : config.r], left[:, :, : config.r] * roots[:, None]
    else:
        b, a = torch.linalg.qr(chosen)
        a, b = a[:, : config.r], b[:, :, : config.r]
    moved = weight_SOD.clone()
    moved[list(slices)] -= scaling * b @ a
    other = copy.copy(linear)
    other._parameters = dict(linear._parameters)
    other.weight = nn.Parameter(moved.flatten(0, 1).to(linear.weight.dtype), requires_grad=False)
    return other, (a.contiguous(), b.contiguous())
