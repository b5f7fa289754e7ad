"""Low-rank adaptation for one client or for a stacked block of clients.

A layer holds no factors of its own: before each forward pass it is bound to those of the block, stacked
(K, G, R, D) or, where all clients share a factor, plain (G, R, D).

Shapes: K clients in a block, G targeted slices of the layer's output (q, k, v of a fused projection; otherwise
one), R rank, D input width, O width of one slice, M rows per client (images times tokens).
Source: Hu et al., LoRA, ICLR 2022, equation 3; separate factors for q, k and v as in DEeR.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.config import LoraConfig
from fedsim.errors import UserError
from fedsim.seeding import torch_stream

QKV = ("q", "k", "v")


class LoRALinear(nn.Module):
    """A frozen linear layer plus (lora_alpha / r) * B A on the targeted slices of its output."""

    def __init__(self, base: nn.Linear, num_slices: int, slices: Sequence[int], scaling: float) -> None:
        super().__init__()
        self.base = base
        self.num_slices = num_slices
        self.slices = tuple(slices)
        self.scaling = scaling
        self.lora_a: Tensor | None = None
        self.lora_b: Tensor | None = None

    @property
    def slice_width(self) -> int:
        return self.base.out_features // self.num_slices

    def forward(self, x: Tensor) -> Tensor:
        """Map (K * N, ..., D) to (K * N, ..., num_slices * O); images of one client are adjacent."""
        return self.slices_of(x, 0, self.num_slices)

    def slices_of(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Return the slices ``start`` to ``stop`` of the output alone, (K * N, ..., (stop - start) * O)."""
        assert self.lora_a is not None, "forward before bind"
        assert self.lora_b is not None, "forward before bind"
        out = linear_slices(self.base, self.num_slices, x, start, stop)
        adapted = [place for place, index in enumerate(self.slices) if start <= index < stop]
        if not adapted:
            return out
        places = slice(adapted[0], adapted[-1] + 1)
        update_KGMO = low_rank_product(x, self.lora_a[..., places, :, :], self.lora_b[..., places, :, :] * self.scaling)
        num_clients, _, rows, width = update_KGMO.shape
        out_KMSO = out.reshape(num_clients, rows, stop - start, width)
        update_KMGO = update_KGMO.transpose(1, 2)
        if len(adapted) == stop - start:
            return (out_KMSO + update_KMGO).reshape(out.shape)
        index = torch.tensor([self.slices[place] - start for place in adapted], device=out.device)
        return out_KMSO.index_add(2, index, update_KMGO).reshape(out.shape)


def linear_slices(layer: nn.Linear, num_slices: int, x: Tensor, start: int, stop: int) -> Tensor:
    """Compute some of the equal slices that a linear layer's output consists of."""
    rows = slice(layer.out_features // num_slices * start, layer.out_features // num_slices * stop)
    return F.linear(x, layer.weight[rows], None if layer.bias is None else layer.bias[rows])


def low_rank_product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return x A' B' of every client and slice, (K, G, M, O); factors stacked by client or shared (see above)."""
    *_, num_slices, rank, width = a.shape
    num_clients = a.shape[0] if a.dim() == 4 else b.shape[0] if b.dim() == 4 else 1
    x_KMD = x.reshape(num_clients, -1, width)
    a_all = a.reshape(*a.shape[:-3], num_slices * rank, width)
    hidden = F.linear(x_KMD, a_all) if a.dim() == 3 else torch.bmm(x_KMD, a_all.transpose(1, 2))
    hidden_KGMR = hidden.unflatten(2, (num_slices, rank)).transpose(1, 2)
    return torch.matmul(hidden_KGMR, b.transpose(-1, -2))


@dataclass(frozen=True)
class LoraLayer:
    """One adapted layer: where it is, and the shapes of its factors."""

    path: str
    module: LoRALinear

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        num, rank = len(self.module.slices), self.rank
        base = self.module.base
        return {
            f"{self.path}.lora_a": (num, rank, base.in_features),
            f"{self.path}.lora_b": (num, self.module.slice_width, rank),
        }

    rank: int

    def bind(self, params: Mapping[str, Tensor]) -> None:
        """Use these factors in the next forward pass."""
        self.module.lora_a = params[f"{self.path}.lora_a"]
        self.module.lora_b = params[f"{self.path}.lora_b"]


def add_lora(root: nn.Module, prefix: str, config: LoraConfig) -> list[LoraLayer]:
    """Replace the targeted linear layers below ``root`` (whose own path is ``prefix``) and return them in order.

    q, k and v name slices of fused ``qkv`` layers; any other word the layers whose last name it is.
    Raises UserError for a target that no layer matches.
    """
    linears = {path: module for path, module in root.named_modules() if isinstance(module, nn.Linear)}
    slices_wanted = [QKV.index(word) for word in config.target if word in QKV]
    layers, matched = [], set()
    for path, linear in linears.items():
        word = path.rpartition(".")[2]
        if word == "qkv" and slices_wanted:
            module = LoRALinear(linear, 3, sorted(slices_wanted), config.lora_alpha / config.r)
            matched.update(set(config.target) & set(QKV))
        elif word in config.target:
            module = LoRALinear(linear, 1, [0], config.lora_alpha / config.r)
            matched.add(word)
        else:
            continue
        parent, _, name = path.rpartition(".")
        setattr(root.get_submodule(parent), name, module)
        layers.append(LoraLayer(f"{prefix}.{path}", module, config.r))
    missing = [word for word in config.target if word not in matched]
    if missing:
        known = sorted({path.rpartition(".")[2] for path in linears})
        raise UserError("model.lora.target", missing[0], f"q, k, v (of a fused qkv) or one of {', '.join(known)}")
    return layers


def initial_factor(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """Draw one factor: A uniform in +-1/sqrt(D), which is kaiming_uniform with a = sqrt(5); B zero (Hu et al., 4.1)."""
    if name.endswith(".lora_b"):
        return torch.zeros(*shape)
    bound = 1 / math.sqrt(shape[-1])
    uniform = torch.rand(*shape, generator=torch_stream(seed, f"init/{name}"))
    return uniform * (2 * bound) - bound
