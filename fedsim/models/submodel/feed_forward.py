"""FedPFT's sub-model: every layer of a transformer, its feed-forward cut to few neurons, and its distillation.

Shapes: N inputs, T tokens, D width of the tokens, F feed-forward neurons of a layer.
Source: Peng et al., FedPFT, IJCAI 2024 (arXiv 2404.11536), layer-wise compression and layer-level distillation.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.errors import UserError
from fedsim.kernels.frozen import plain

LOOKED_FOR = "two nn.Linear layers, D -> F and F -> D: fc1 and fc2, c_fc and c_proj, or intermediate and output.dense"


@dataclass(frozen=True)
class FeedForward:
    """The two matrices of a block's feed-forward, by their paths in the block: ``inner`` (F, D), ``outer`` (D, F)."""

    block: nn.Module
    inner_path: str
    outer_path: str

    @property
    def inner(self) -> nn.Linear:
        return _linear(self.block, self.inner_path)

    @property
    def outer(self) -> nn.Linear:
        return _linear(self.block, self.outer_path)

    def product(self) -> Tensor:
        """Return outer inner, (D, D): what the feed-forward would be without its nonlinearity."""
        return plain(self.outer.weight) @ plain(self.inner.weight)

    def trained(self) -> dict[str, nn.Parameter]:
        """What distillation trains, by its path in the block: the two modules that hold the matrices.

        Beside weights and biases that is the LayerNorm after a BERT's feed-forward, which its ``output`` holds too.
        """
        # A linear layer that lies in the block itself is its own holder.
        holders = {path.rpartition(".")[0] or path for path in (self.inner_path, self.outer_path)}
        return {
            name: parameter
            for name, parameter in self.block.named_parameters()
            if any(name.startswith(f"{holder}.") for holder in holders)
        }

    def cut(self, neurons: Tensor) -> dict[str, Tensor]:
        """Return copies of what ``trained`` names, with these neurons alone (indices in rising order)."""
        tensors = {name: plain(parameter.detach()).clone() for name, parameter in self.trained().items()}
        for name, axis in self.neuron_axes().items():
            tensors[name] = tensors[name].index_select(axis, neurons)
        return tensors

    def check(self, where: str) -> None:
        """UserError, which begins with ``where``, for anything beside the two matrices that knows every neuron."""
        num_neurons = self.inner.out_features
        known = {*self.neuron_axes(), f"{self.outer_path}.bias"}
        for name, parameter in self.trained().items():
            if name not in known and num_neurons in parameter.shape and num_neurons != self.inner.in_features:
                raise UserError(where, f"{name} over the {num_neurons} neurons", LOOKED_FOR)

    def neuron_axes(self) -> dict[str, int]:
        """Of what ``trained`` names the tensors with an entry for each neuron, and the axis that has it."""
        axes = {f"{self.inner_path}.weight": 0, f"{self.outer_path}.weight": 1}
        return axes if self.inner.bias is None else {**axes, f"{self.inner_path}.bias": 0}


def find_feed_forward(block: nn.Module, where: str) -> FeedForward:
    """Find a block's feed-forward by its shapes: its last two neighbouring linear layers that widen and narrow again.

    UserError, which begins with ``where``, for a block without.
    """
    linears = [(path, module) for path, module in block.named_modules() if isinstance(module, nn.Linear)]
    for (inner_path, inner), (outer_path, outer) in reversed(list(pairwise(linears))):
        if (inner.in_features, inner.out_features) == (outer.out_features, outer.in_features):
            return FeedForward(block, inner_path, outer_path)
    shapes = ", ".join(f"{path} ({layer.in_features} -> {layer.out_features})" for path, layer in linears)
    raise UserError(where, f"no feed-forward among {shapes or 'no linear layers'}", LOOKED_FOR)


def neuron_saliency(layer: FeedForward) -> Tensor:
    """Return for each neuron the norm of its row of ``inner`` and its column of ``outer`` together, (F,); no biases."""
    inner, outer = plain(layer.inner.weight), plain(layer.outer.weight)
    return (inner.square().sum(1) + outer.square().sum(0)).sqrt()


def choose_neurons(
    blocks: Sequence[nn.Module] | nn.ModuleList, layers_retained: Sequence[int], intermediate_rank: int
) -> dict[int, tuple[FeedForward, Tensor]]:
    """Return every block's feed-forward that is to be cut, and its most salient neurons.

    ``layers_retained``: numbers of blocks, from 0, that stay whole. The neurons are (intermediate_rank,) in rising
    order; of equal ones the first are kept. UserError for a number of no block or those of all, a rank that is not from
    1 to the block's width, and a block without feed-forward.
    """
    for whole in layers_retained:
        if not 0 <= whole < len(blocks):
            raise UserError("submodel.layers_retained", str(whole), f"layers from 0 to {len(blocks) - 1}")
    found = {
        number: find_feed_forward(block, f"layer {number} of the model")
        for number, block in enumerate(blocks)
        if number not in layers_retained
    }
    if not found:
        raise UserError("submodel.layers_retained", f"all {len(blocks)} layers", "one at least that is cut")
    for number, layer in found.items():
        if not 1 <= intermediate_rank <= layer.inner.out_features:
            allowed = f"from 1 to the {layer.inner.out_features} neurons of layer {number}"
            raise UserError("submodel.intermediate_rank", str(intermediate_rank), allowed)
        layer.check(f"layer {number} of the model")
    with torch.no_grad():
        orders = {n: neuron_saliency(layer).argsort(descending=True, stable=True) for n, layer in found.items()}
    return {n: (layer, orders[n][:intermediate_rank].sort().values) for n, layer in found.items()}


def state_error(
    layers: Iterable[int], found: Sequence[Tensor], expected: Sequence[Tensor], own: Tensor | None
) -> Tensor:
    """Return the mean over layers of the relative error of their outputs, a scalar.

    ``found`` and ``expected``: every block's output (N, T, D). ``own`` (N, T), bool: the tokens that count; None: all.
    """
    pairs = [(found[layer].float(), expected[layer].float()) for layer in layers]
    if own is not None:
        pairs = [(mine[own], theirs[own]) for mine, theirs in pairs]
    return torch.stack([relative_error(*pair) for pair in pairs]).mean()


def product_error(found: Mapping[int, Tensor], expected: Mapping[int, Tensor]) -> Tensor:
    """Return the mean over layers of the relative error of ``FeedForward.product`` (D, D), a scalar."""
    return torch.stack([relative_error(found[layer], expected[layer]) for layer in found]).mean()


def relative_error(found: Tensor, expected: Tensor) -> Tensor:
    """Return the mean squared error over the mean square of what is expected, a scalar."""
    return F.mse_loss(found, expected) / expected.square().mean()


def _linear(block: nn.Module, path: str) -> nn.Linear:
    module = block.get_submodule(path)
    assert isinstance(module, nn.Linear), "find_feed_forward takes no others"
    return module
