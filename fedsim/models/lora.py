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
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedsim.config.words import LoraConfig
from fedsim.errors import UserError
from fedsim.kernels import lora as compiled
from fedsim.kernels.examples import Keep, PlainProducts, Tape
from fedsim.kernels.frozen import FrozenLinear, FrozenProduct, frozen_linear, plain
from fedsim.models.specs import SHIFT, A, B
from fedsim.seeding import torch_stream

QKV = ("q", "k", "v")


class LoRALinear(nn.Module):
    """A frozen linear layer plus (lora_alpha / r) * (shift + B A) on the targeted slices of its output.

    The shift is what the server has added to the frozen weights, of all clients; there may be none. Products with both
    are laid out for the processor once, as long as the shift stays the same; those without stay in memory beside them.
    """

    def __init__(self, base: nn.Linear, num_slices: int, slices: Sequence[int], scaling: float) -> None:
        super().__init__()
        self.base = FrozenLinear(base)
        self.num_slices = num_slices
        self.slices = tuple(slices)
        self.scaling = scaling
        self.lora_a: Tensor | None = None
        self.lora_b: Tensor | None = None
        self._shift: Tensor | None = None
        self._version = 0
        self._is_shifted = False
        self._shifted: dict[tuple[int, int], FrozenProduct] = {}
        #: Where the way back leaves the products of single examples instead of the factors' gradients.
        self.tape: Tape | None = None

    @property
    def slice_width(self) -> int:
        return self.base.out_features // self.num_slices

    def shift_by(self, shift: Tensor | None) -> None:
        """Use the frozen weights with this shift (G, O, D) from the next forward pass on; None: as they are."""
        version = 0 if shift is None else shift._version
        if shift is self._shift and version == self._version:
            return
        self._shift, self._version, self._shifted = shift, version, {}
        self._is_shifted = shift is not None and bool(shift.any())

    def product(self, start: int, stop: int) -> FrozenProduct:
        """The frozen product that gives the slices ``start`` to ``stop`` of the output."""
        rows = start * self.slice_width, stop * self.slice_width
        if not self._is_shifted:
            return self.base.product(*rows)
        if (start, stop) not in self._shifted:
            assert self._shift is not None, "it is shifted"
            frozen = plain(self.base.weight)[slice(*rows)]
            weight_SOD = frozen.float().unflatten(0, (stop - start, self.slice_width)).clone()
            for place, index in enumerate(self.slices):
                if start <= index < stop:
                    weight_SOD[index - start] += self.scaling * self._shift[place]
            bias = None if self.base.bias is None else self.base.bias[slice(*rows)]
            self._shifted[start, stop] = FrozenProduct(weight_SOD.flatten(0, 1).to(frozen.dtype), bias)
        return self._shifted[start, stop]

    def forward(self, x: Tensor) -> Tensor:
        """Map (K * N, ..., D) to (K * N, ..., num_slices * O); images of one client are adjacent."""
        return self.slices_of(x, 0, self.num_slices)

    def slices_of(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Return the slices ``start`` to ``stop`` of the output alone, (K * N, ..., (stop - start) * O)."""
        assert self.lora_a is not None, "forward before bind"
        assert self.lora_b is not None, "forward before bind"
        product = self.product(start, stop)
        adapted = [place for place, index in enumerate(self.slices) if start <= index < stop]
        if not adapted:
            return frozen_linear(x, product)
        places = slice(adapted[0], adapted[-1] + 1)
        a, b = ((factor if factor.dim() == 4 else factor[None])[:, places] for factor in (self.lora_a, self.lora_b))
        # Products run in the type of the frozen weights; autocast would do the same, operation by operation.
        x = x.to(product.weight.dtype)
        targets = tuple(self.slices[place] - start for place in adapted)
        keep = None if self.tape is None else Keep(self.tape, self, places)
        if compiled.suits(product, self.slice_width):
            x_KMD = x.reshape(max(len(a), len(b)) if keep is None else 1, -1, x.shape[-1])
            out: Tensor = compiled.CompiledLowRank.apply(x_KMD, product, a, b, targets, self.scaling, keep)
            return out.reshape(*x.shape[:-1], len(product.weight))
        num_clients = max(len(a), len(b)) if keep is None else len(keep.sizes.counts)
        # An image's rows are its tokens, a volume's those of all its slices.
        padded = x if keep is None else keep.sizes.spread(x.reshape(keep.sizes.total, -1, x.shape[-1]))
        with torch.autocast(x.device.type, enabled=False):
            x_KMD = padded.reshape(num_clients, -1, x.shape[-1])
            out = LowRankLinear.apply(x_KMD, product, a.to(x.dtype), b.to(x.dtype), targets, self.scaling, keep)
        out = out.reshape(*padded.shape[:-1], len(product.weight))
        return out if keep is None else keep.sizes.gather(out).reshape(*x.shape[:-1], -1)


class LowRankLinear(torch.autograd.Function):
    """x W' + bias, plus s x A' B' on the adapted slices of the output; W and bias are frozen.

    x (K, M, D), ``product`` with W (S * O, D) and bias, A (K or 1, G, R, D), B (K or 1, G, O, R), ``targets``: the
    slices, of S, that the G factors adapt; returns (K, M, S * O). Written by hand because autograd copies the strided
    slices of the output several times, which costs more than the products (benchmarks/LOG.md). ``keep``: given the
    examples' products in place of gradients of A and B, which are then None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        product: FrozenProduct,
        a: Tensor,
        b: Tensor,
        targets: tuple[int, ...],
        scaling: float,
        keep: Keep | None = None,
    ) -> Tensor:
        num_clients, num_rows, _ = x.shape
        out = product.forward(x.flatten(0, 1)).view(num_clients, num_rows, -1, b.shape[2])
        a_all = a.flatten(1, 2).expand(num_clients, -1, -1)
        hidden = torch.bmm(x, a_all.mT).mul_(scaling)
        for place, target in enumerate(targets):
            b_place = b[:, place].expand(num_clients, -1, -1)
            out[:, :, target].baddbmm_(hidden.unflatten(2, (len(targets), -1))[:, :, place], b_place.mT)
        ctx.save_for_backward(x, a, b, hidden)
        ctx.product, ctx.targets, ctx.scaling, ctx.keep = product, targets, scaling, keep
        return out.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, A and B; the frozen weights have none."""
        x, a, b, hidden = ctx.saved_tensors
        needs_x, _, needs_a, needs_b, *_ = ctx.needs_input_grad
        num_clients = len(x)
        num_slices = grad.shape[2] // b.shape[2]
        # What reaches the R hidden values of every adapted slice, (K, M, G * R). One product with the factors on the
        # diagonal of a larger one is quicker than one product for each slice of the gradient.
        diagonal = b.new_zeros(len(b), num_slices, b.shape[2], len(ctx.targets), b.shape[3])
        for place, target in enumerate(ctx.targets):
            diagonal[:, target, :, place] = b[:, place]
        inner = torch.bmm(grad, diagonal.flatten(3, 4).flatten(1, 2).expand(num_clients, -1, -1)).mul_(ctx.scaling)
        grad_x = grad_a = grad_b = None
        if needs_x:
            a_all = a.flatten(1, 2).expand(num_clients, -1, -1)
            grad_x = ctx.product.backward(grad.flatten(0, 1)).view_as(x).baddbmm_(inner, a_all)
        if ctx.keep is not None:
            sides = x.detach(), inner, hidden, grad
            ctx.keep(PlainProducts(*sides, ctx.targets, ctx.keep.sizes, b.shape[2], needs_a, needs_b))
            return grad_x, *[None] * 6
        if needs_a:
            grad_a = torch.bmm(inner.mT, x).view_as(a)
        if needs_b:
            # One product over all slices is quicker than one for each; only the matching pairs are kept.
            pairs = torch.bmm(hidden.mT, grad).unflatten(2, (num_slices, -1)).unflatten(1, (len(ctx.targets), -1))
            grad_b = torch.stack([pairs[:, place, :, target].mT for place, target in enumerate(ctx.targets)], 1)
        return grad_x, None, grad_a, grad_b, None, None, None


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
            f"{self.path}{A}": (num, rank, base.in_features),
            f"{self.path}{B}": (num, self.module.slice_width, rank),
        }

    @property
    def shift(self) -> dict[str, tuple[int, int, int]]:
        """Name and shape of what the server adds to the frozen weights, where it does."""
        module = self.module
        return {f"{self.path}{SHIFT}": (len(module.slices), module.slice_width, module.base.in_features)}

    rank: int

    def bind(self, params: Mapping[str, Tensor]) -> None:
        """Use these factors in the next forward pass, and the frozen weights with the shift if there is one."""
        self.module.lora_a = params[f"{self.path}{A}"]
        self.module.lora_b = params[f"{self.path}{B}"]
        self.module.shift_by(params.get(f"{self.path}{SHIFT}"))


def add_lora(root: nn.Module, prefix: str, config: LoraConfig, blocks: Sequence[int] | None = None) -> list[LoraLayer]:
    """Replace the targeted linear layers below ``root`` (whose own path is ``prefix``) and return them in order.

    q, k and v name slices of fused ``qkv`` layers; any other word the layers whose last name, or names, it is, and
    proj also a BERT's attention.output.dense. ``blocks``: numbers of the children of ``root`` that get any; None: all.
    Raises UserError for a target that no layer matches, and a number of no block.
    """
    numbers = [name for name, _ in root.named_children()]
    chosen = numbers if blocks is None else [str(number) for number in blocks]
    if unknown := [number for number in chosen if number not in numbers]:
        raise UserError("model.lora.layers", unknown[0], f"layers from 0 to {len(numbers) - 1}")
    linears = {
        path: module
        for path, module in root.named_modules()
        if isinstance(module, nn.Linear) and path.partition(".")[0] in chosen
    }
    slices_wanted = [QKV.index(word) for word in config.target if word in QKV]
    layers, matched = [], set()
    for path, linear in linears.items():
        word = path.rpartition(".")[2]
        if word == "qkv" and slices_wanted:
            module = LoRALinear(linear, 3, sorted(slices_wanted), config.lora_alpha / config.r)
            matched.update(set(config.target) & set(QKV))
        elif words := [word for word in config.target if f".{path}".endswith(endings(word))]:
            module = LoRALinear(linear, 1, [0], config.lora_alpha / config.r)
            matched.update(words)
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


def endings(word: str) -> tuple[str, ...]:
    """How the paths of the linear layers end that a word of ``model.lora.target`` means."""
    return (".proj", ".attention.output.dense") if word == "proj" else (f".{word}",)


def initial_factor(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """Draw one factor: A uniform in +-1/sqrt(D), which is kaiming_uniform with a = sqrt(5); B zero (Hu et al., 4.1)."""
    if name.endswith(".lora_b"):
        return torch.zeros(*shape)
    bound = 1 / math.sqrt(shape[-1])
    uniform = torch.rand(*shape, generator=torch_stream(seed, f"init/{name}"))
    return uniform * (2 * bound) - bound
