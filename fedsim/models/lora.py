"""Low-rank adaptation for one client or for a stacked block of clients.

A layer holds no factors of its own: before each forward pass it is bound to those of the block, stacked
(K, G, R, D) or, where all clients share a factor, plain (G, R, D).

Shapes: K clients in a block, G targeted slices of the layer's output (q, k, v of a fused projection; otherwise
one), R rank, D input width, O width of one slice, M rows per client (images times tokens).
Source: Hu et al., LoRA, ICLR 2022, equation 3; separate factors for q, k and v as in DEeR.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.config.words import LoraConfig
from fedsim.errors import UserError
from fedsim.kernels import lora as compiled
from fedsim.kernels.examples import Keep, Tape
from fedsim.kernels.frozen import FrozenLinear, FrozenProduct, frozen_linear, plain
from fedsim.kernels.low_rank import LowRankLinear
from fedsim.models.dora import row_norms, with_magnitudes
from fedsim.models.lora_start import TAKEN, initial_factor, take_out
from fedsim.models.specs import MAGNITUDE, SHIFT, A, B

QKV = ("q", "k", "v")


class LowRank(nn.Module):
    """A frozen layer with low-rank factors on the ``slices`` of its output, and what these are at the next pass.

    ``lora_a`` (K, G, R, D) and ``lora_b`` (K, G, O, R), without K where all clients share them.
    """

    slice_width: int
    input_width: int

    def __init__(self, slices: Sequence[int], scaling: float, start: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self.slices = tuple(slices)
        self.scaling = scaling
        #: In its place each client's own, float32 (K,), or (), where ranks differ.
        self.own_scaling: Tensor | None = None
        self.lora_a: Tensor | None = None
        self.lora_b: Tensor | None = None
        self.magnitude: Tensor | None = None
        #: The squared norms (G, O) of the rows that are adapted, where every output has a magnitude of its own.
        self.row_squares: Tensor | None = None
        #: The A (G, R, D) and B (G, O, R) that training begins with, where the weight lacks scaling * B A.
        self.start = start
        #: Where the way back leaves the products of single examples instead of the factors' gradients.
        self.tape: Tape | None = None
        self._shift: Tensor | None = None
        self._version = 0
        self._is_shifted = False
        self._shifted: dict[tuple[int, int], Any] = {}

    def shift_by(self, shift: Tensor | None) -> None:
        """Use the frozen weights with this shift (G, O, D) from the next forward pass on; None: as they are."""
        version = 0 if shift is None else shift._version
        if shift is self._shift and version == self._version:
            return
        self._shift, self._version, self._shifted = shift, version, {}
        self._is_shifted = shift is not None and bool(shift.any())

    @property
    def _scaling(self) -> float | Tensor:
        return self.scaling if self.own_scaling is None else self.own_scaling

    def initial_magnitude(self, a: Tensor, b: Tensor) -> list[Tensor]:
        """Return, where there is one, the magnitude (G, O) with which factors (G, ...) change nothing."""
        del a, b
        return []


class LoRALinear(LowRank):
    """A frozen linear layer plus scaling * (shift + B A) on the targeted slices of its output.

    The shift is what the server has added to the frozen weights, of all clients; there may be none. Products with both
    are laid out for the processor once, as long as the shift stays the same; those without stay in memory beside them.
    """

    def __init__(
        self,
        base: nn.Linear,
        num_slices: int,
        slices: Sequence[int],
        scaling: float,
        start: tuple[Tensor, Tensor] | None = None,
        *,
        use_dora: bool = False,
    ) -> None:
        super().__init__(slices, scaling, start)
        if use_dora:
            weight_SOD = base.weight.detach().unflatten(0, (num_slices, -1))
            self.row_squares = weight_SOD[list(slices)].float().square().sum(2)
        self.base = FrozenLinear(base)
        self.num_slices = num_slices

    @property
    def slice_width(self) -> int:  # type: ignore[override]  # the layer's own, which never changes
        return self.base.out_features // self.num_slices

    @property
    def input_width(self) -> int:  # type: ignore[override]  # as above
        return self.base.in_features

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
        shifted: FrozenProduct = self._shifted[start, stop]
        return shifted

    def initial_magnitude(self, a: Tensor, b: Tensor) -> list[Tensor]:
        if self.row_squares is None:
            return []
        a, b = (factor[None].to(self.row_squares.device) for factor in (a, b))
        product = self.base.product(0, self.base.out_features)
        return [row_norms(self.row_squares, product, a, b, self.slices, self.scaling)[0]]

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
        if self.row_squares is None:
            return self._adapted(x, product, a, b, targets, places)
        assert self.magnitude is not None, "forward before bind"
        magnitude = (self.magnitude if self.magnitude.dim() == 3 else self.magnitude[None])[:, places]
        num_clients = max(len(a), len(b), len(magnitude))
        out = self._adapted(x, product, a, b, targets, places)
        out_KMSO = out.reshape(num_clients, -1, stop - start, self.slice_width)
        norms = row_norms(self.row_squares[places], product, a, b, targets, self._scaling)
        return with_magnitudes(out_KMSO, magnitude, norms, product.bias, targets).view(out.shape)

    def _adapted(
        self, x: Tensor, product: FrozenProduct, a: Tensor, b: Tensor, targets: tuple[int, ...], places: slice
    ) -> Tensor:
        """The output of W + s B A, in the type of W."""
        keep = None if self.tape is None else Keep(self.tape, self, places)
        if compiled.suits(product, self.slice_width):
            x_KMD = x.reshape(max(len(a), len(b)) if keep is None else 1, -1, x.shape[-1])
            out: Tensor = compiled.CompiledLowRank.apply(x_KMD, product, a, b, targets, self._scaling, keep)
            return out.reshape(*x.shape[:-1], len(product.weight))
        num_clients = max(len(a), len(b)) if keep is None else len(keep.sizes.counts)
        # An image's rows are its tokens, a volume's those of all its slices.
        padded = x if keep is None else keep.sizes.spread(x.reshape(keep.sizes.total, -1, x.shape[-1]))
        with torch.autocast(x.device.type, enabled=False):
            x_KMD = padded.reshape(num_clients, -1, x.shape[-1])
            out = LowRankLinear.apply(x_KMD, product, a.to(x.dtype), b.to(x.dtype), targets, self._scaling, keep)
        out = out.reshape(*padded.shape[:-1], len(product.weight))
        return out if keep is None else keep.sizes.gather(out).reshape(*x.shape[:-1], -1)


@dataclass(frozen=True)
class LoraLayer:
    """One adapted layer: where it is, and the shapes of its factors."""

    path: str
    module: LowRank

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        num, rank = len(self.module.slices), self.rank
        shapes: dict[str, tuple[int, ...]] = {
            f"{self.path}{A}": (num, rank, self.module.input_width),
            f"{self.path}{B}": (num, self.module.slice_width, rank),
        }
        if self.module.row_squares is not None:
            shapes[f"{self.path}{MAGNITUDE}"] = (num, self.module.slice_width)
        return shapes

    @property
    def shift(self) -> dict[str, tuple[int, int, int]]:
        """Name and shape of what the server adds to the frozen weights, where it does."""
        module = self.module
        return {f"{self.path}{SHIFT}": (len(module.slices), module.slice_width, module.input_width)}

    rank: int

    def initial(self, init: bool | str, seed: int) -> dict[str, Tensor]:
        """Return what training begins with, by name."""
        names = list(self.shapes)
        a, b = self.module.start or [initial_factor(name, self.shapes[name], seed, init) for name in names[:2]]
        return dict(zip(names, (a, b, *self.module.initial_magnitude(a, b)), strict=True))

    def bind(self, params: Mapping[str, Tensor], scaling: Tensor | None = None) -> None:
        """Use these factors in the next forward pass, and the frozen weights with the shift if there is one.

        And this scaling of the factors, () or (K,), where ranks differ.
        """
        self.module.own_scaling = scaling
        self.module.lora_a = params[f"{self.path}{A}"]
        self.module.lora_b = params[f"{self.path}{B}"]
        self.module.magnitude = params.get(f"{self.path}{MAGNITUDE}")
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
    slices_wanted = sorted(QKV.index(word) for word in config.target if word in QKV)
    layers, matched = [], set()
    for path, linear in linears.items():
        word = path.rpartition(".")[2]
        if word == "qkv" and slices_wanted:
            module = adapted(linear, 3, slices_wanted, config, path)
            matched.update(set(config.target) & set(QKV))
        elif words := [word for word in config.target if f".{path}".endswith(endings(word))]:
            module = adapted(linear, 1, [0], config, path)
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


def adapted(
    linear: nn.Linear,
    num_slices: int,
    slices: Sequence[int],
    config: LoraConfig,
    path: str,
    kind: type[LoRALinear] = LoRALinear,
) -> LoRALinear:
    """Return a layer, of so many slices, with LoRA on some of them, and without what its factors begin with."""
    start = None
    if config.init_lora_weights in TAKEN:
        linear, start = take_out(linear, num_slices, slices, config, path)
    return kind(linear, num_slices, slices, config.scaling(config.r), start, use_dora=config.use_dora)


def endings(word: str) -> tuple[str, ...]:
    """How the paths of the linear layers end that a word of ``model.lora.target`` means."""
    return (".proj", ".attention.output.dense") if word == "proj" else (f".{word}",)
