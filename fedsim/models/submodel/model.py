"""The model that clients hold in place of the server's: some of its blocks, or all with their feed-forwards cut.

Both share attention, norms, LoRA layers and both ends; of a cut feed-forward alone there is another one, whose
tensors are parameters ("proxy") and bound before each forward pass as the LoRA factors are.

Shapes: K clients in a block, B inputs per client, N = K B, T tokens, D width of the tokens, F neurons of a cut
feed-forward.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.errors import UserError
from fedsim.kernels.frozen import FrozenProduct, frozen_linear
from fedsim.models.specs import NUM_TOKENS, PROXIES, ZEROS, ParamSpec
from fedsim.models.stacked import Counting
from fedsim.models.submodel.feed_forward import find_feed_forward
from fedsim.models.tower import shallow_copy
from fedsim.models.tuned_tower import TunedTower

BLOCKS = "blocks."


class ProxyLinear(nn.Module):
    """A linear layer bound to a weight (O, D) and a bias (O,), or None, before its forward pass.

    Frozen ones are cast to ``dtype`` and laid out for the processor once, as long as they stay the same; others get
    their gradient. ``counter``: where to count what comes in.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self._tensors: tuple[Tensor, Tensor | None] | None = None
        self._version = -1
        self._product: FrozenProduct | None = None
        self.counter: ZeroCounter | None = None

    def bind(self, weight: Tensor, bias: Tensor | None) -> None:
        """Use these in the next forward pass; a bound tensor may meanwhile change in place."""
        assert weight.dim() == 2, "clients share the sub-model's feed-forwards"
        known, version = self._tensors, weight._version + (0 if bias is None else bias._version)
        if known is None or known[0] is not weight or known[1] is not bias or version != self._version:
            self._tensors, self._version, self._product = (weight, bias), version, None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, ..., D) to (N, ..., O)."""
        assert self._tensors is not None, "forward before bind"
        if self.counter is not None:
            self.counter.add(x.detach())
        weight, bias = self._tensors
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            return F.linear(x, weight, bias)
        if self._product is None:
            self._product = FrozenProduct(weight.to(self.dtype), None if bias is None else bias.to(self.dtype))
        return frozen_linear(x, self._product)


class ProxyNorm(nn.Module):
    """A LayerNorm bound to scale and shift (D,) before its forward pass."""

    dtype = torch.float32

    def __init__(self, source: nn.LayerNorm) -> None:
        super().__init__()
        self._eps = source.eps
        self._tensors: tuple[Tensor, Tensor | None] | None = None

    def bind(self, weight: Tensor, bias: Tensor | None) -> None:
        """Use these in the next forward pass."""
        self._tensors = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        assert self._tensors is not None, "forward before bind"
        weight, bias = self._tensors
        return F.layer_norm(x, weight.shape, weight, bias, self._eps)


@dataclass(frozen=True)
class ZeroCounter:
    """Counts, per client and neuron, the exact zeros of activations (N, T, F) at the tokens of ``mask`` bool (N, T).

    ``zeros`` int64 (K, F) grows in place. Where a GELU ends in zeros is a matter of rounding: from -5.5431 down with
    the compiled one, somewhere between -5.4858 and -5.5426 with PyTorch's. The one that runs is counted; on brain MRI
    the two differ in 0.2 % of the zeros.
    """

    zeros: Tensor
    mask: Tensor

    def add(self, activation: Tensor) -> None:
        """Take in a layer's activations."""
        num_clients, num_neurons = self.zeros.shape
        is_zero = (activation == 0).float().reshape(num_clients, -1, num_neurons)
        # A product is quicker than a sum of truth values, and in float32 exact up to 2^24 tokens.
        with torch.autocast(activation.device.type, enabled=False):
            counts = torch.bmm(self.mask.float().view(num_clients, 1, -1), is_zero)
        self.zeros.add_(counts[:, 0].long())


@dataclass(frozen=True)
class CutLayer:
    """A cut feed-forward of the held model: its bound modules by their path in the block, and which is the outer."""

    number: int
    modules: Mapping[str, ProxyLinear | ProxyNorm]
    outer: ProxyLinear

    def bind(self, params: Mapping[str, Tensor], mask: Tensor | None) -> None:
        """Use these parameters in the next forward pass, and count the zeros of the tokens of ``mask`` bool (N, T)."""
        for path, module in self.modules.items():
            place = f"{PROXIES}{self.number}.{path}"
            module.bind(params[f"{place}.weight"], params.get(f"{place}.bias"))
        self.outer.counter = None if mask is None else ZeroCounter(params[f"{ZEROS}{self.number}"], mask)


class HeldModel(TunedTower):
    """What clients train and the server plugs into ``full``: the same ends and LoRA layers around other blocks.

    ``layers``: the blocks it has, in rising order. ``tensors``: what takes the place of feed-forwards, by the names
    "blocks.<layer>.<path in the block>". Its parameters are those of ``full``, with the same names, and beside them
    the ``tensors`` ("proxy") and what is counted while clients train ("count").
    UserError where a LoRA layer is on what the sub-model cuts.
    """

    def __init__(self, full: TunedTower, layers: Sequence[int], tensors: Mapping[str, Tensor]) -> None:
        self._full = full
        self._tensors = tensors
        check_adapters(full, tensors)
        blocks, self.cut_layers = [], []
        for number in layers:
            block, cut = cut_block(full.blocks[number], number, tensors)
            blocks.append(block)
            self.cut_layers += cut
        encoder = replace(full.encoder, net=full.tower.with_blocks(blocks))
        super().__init__(full.config, encoder, full.lora_layers, full.num_classes, full.device)
        self.specs |= self._own_specs()

    def _own_specs(self) -> dict[str, ParamSpec]:
        specs = {}
        for cut in self.cut_layers:
            whole = find_feed_forward(self._full.blocks[cut.number], f"layer {cut.number} of the model")
            axes = whole.neuron_axes()
            for path in whole.trained():
                shape = tuple(self._tensors[f"{BLOCKS}{cut.number}.{path}"].shape)
                specs[f"{PROXIES}{cut.number}.{path}"] = ParamSpec(shape, "proxy", axes.get(path))
            rank = len(self._tensors[f"{BLOCKS}{cut.number}.{whole.inner_path}.weight"])
            specs[f"{ZEROS}{cut.number}"] = ParamSpec((rank,), "count")
        return specs | ({NUM_TOKENS: ParamSpec((), "count")} if self.cut_layers else {})

    def initial(self, seed: int) -> dict[str, Tensor]:
        params = self._full.initial(seed)
        for name, tensor in self._tensors.items():
            params[PROXIES + name.removeprefix(BLOCKS)] = tensor.detach().float().clone().to(self.device)
        for name, spec in self.specs.items():
            if spec.kind == "count":
                params[name] = torch.zeros(spec.shape, dtype=torch.int64, device=self.device)
        return params

    def with_shifts(self) -> Self:
        other = super().with_shifts()
        other._full = self._full.with_shifts()
        return other

    def cut_tensors(self) -> list[Tensor]:
        """Return the cut feed-forwards' tensors in the types in which clients keep them; no values."""
        return [
            torch.empty(self._tensors[name].shape, dtype=module.dtype, device="meta")
            for cut in self.cut_layers
            for path, module in cut.modules.items()
            for name in (f"{BLOCKS}{cut.number}.{path}.weight", f"{BLOCKS}{cut.number}.{path}.bias")
            if name in self._tensors
        ]

    def bind(self, params: Mapping[str, Tensor], tokens: Tensor, counting: Counting | None) -> None:
        super().bind(params, tokens, counting)
        mask = None
        if counting is not None:
            own = self.tower.own_tokens(tokens)
            mask = counting.places.flatten()[:, None] & (torch.ones_like(own) if counting.padding else own)
            params[NUM_TOKENS].add_(mask.view(len(counting.places), -1).sum(1))
        for cut in self.cut_layers:
            cut.bind(params, mask)


def check_adapters(full: TunedTower, tensors: Mapping[str, Tensor]) -> None:
    """UserError where LoRA is on a linear layer that ``tensors`` replace: it would not fit the full model's."""
    cut = {name.rpartition(".")[0] for name in tensors}
    for layer in full.lora_layers:
        if layer.path in cut:
            found = f"a target in {layer.path}, which model.submodel cuts"
            raise UserError("model.lora.target", found, "q, k, v or proj; or model.lora.layers without that layer")


def cut_block(block: nn.Module, number: int, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, list[CutLayer]]:
    """Return the block itself, or where ``tensors`` has some for it one that shares all but the feed-forward."""
    start = f"{BLOCKS}{number}."
    paths = {name.removeprefix(start).rpartition(".")[0] for name in tensors if name.startswith(start)}
    if not paths:
        return block, []
    modules: dict[str, ProxyLinear | ProxyNorm] = {}
    for path in sorted(paths):
        module = block.get_submodule(path)
        if isinstance(module, nn.LayerNorm):
            modules[path] = ProxyNorm(module)
        else:
            assert isinstance(module, nn.Linear), "load_submodel looks at the names"
            modules[path] = ProxyLinear(module.weight.dtype)
    outer = modules[find_feed_forward(block, f"layer {number} of the model").outer_path]
    assert isinstance(outer, ProxyLinear), "a feed-forward's matrices are linear layers"
    return with_modules(block, modules), [CutLayer(number, modules, outer)]


def with_modules(root: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy of ``root`` with these modules at their paths; it shares all others."""
    copies = {"": shallow_copy(root)}
    for path, module in modules.items():
        parts = path.split(".")
        for depth, part in enumerate(parts[:-1], start=1):
            parent, own = ".".join(parts[: depth - 1]), ".".join(parts[:depth])
            if own not in copies:
                copies[own] = shallow_copy(root.get_submodule(own))
                setattr(copies[parent], part, copies[own])
        setattr(copies[path.rpartition(".")[0]], parts[-1], module)
    return copies[""]
