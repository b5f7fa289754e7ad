"""FedPFT's sub-model: every layer of a transformer, its feed-forward cut to few neurons, and its distillation.

Shapes: N inputs, T tokens, D width of the tokens, F feed-forward neurons of a layer.
Source: Peng et al., FedPFT, IJCAI 2024 (arXiv 2404.11536), layer-wise compression and layer-level distillation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.errors import UserError

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
        return self.outer.weight @ self.inner.weight

    def trained(self) -> dict[str, nn.Parameter]:
        """What distillation trains, by its path in the block: the two modules that hold the matrices.

        Beside weights and biases that is the LayerNorm after a BERT's feed-forward, which its ``output`` holds too.
        """
        holders = {path.rpartition(".")[0] for path in (self.inner_path, self.outer_path)}
        return {
            name: parameter
            for name, parameter in self.block.named_parameters()
            if any(name.startswith(f"{holder}.") for holder in holders)
        }

    def keep(self, neurons: Tensor) -> None:
        """Leave these neurons (indices in rising order) alone, in place."""
        inner, outer = self.inner, self.outer
        bias = None if inner.bias is None else inner.bias[neurons]
        _replace(self.block, self.inner_path, inner.weight[neurons], bias)
        _replace(self.block, self.outer_path, outer.weight[:, neurons], outer.bias)


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
    return (layer.inner.weight.square().sum(1) + layer.outer.weight.square().sum(0)).sqrt()


def compress(
    blocks: Sequence[nn.Module] | nn.ModuleList, layers_retained: Sequence[int], intermediate_rank: int
) -> dict[int, tuple[FeedForward, Tensor]]:
    """Cut every block's feed-forward to its most salient neurons, in place.

    ``layers_retained``: numbers of blocks, from 0, that stay whole. Return for each of the others the shortened
    feed-forward and the kept neurons, (intermediate_rank,) in rising order; of equal ones the first are kept.
    UserError, with nothing changed, for a number of no block or those of all, a rank that is not from 1 to the block's
    width, and a block without feed-forward.
    """
    for whole in layers_retained:
        if not 0 <= whole < len(blocks):
            raise UserError("layers_retained", str(whole), f"layers from 0 to {len(blocks) - 1}")
    found = {
        number: find_feed_forward(block, f"layer {number} of the model")
        for number, block in enumerate(blocks)
        if number not in layers_retained
    }
    if not found:
        raise UserError("layers_retained", f"all {len(blocks)} layers", "one at least that is cut")
    for number, layer in found.items():
        if not 1 <= intermediate_rank <= layer.inner.out_features:
            allowed = f"from 1 to the {layer.inner.out_features} neurons of layer {number}"
            raise UserError("intermediate_rank", str(intermediate_rank), allowed)
    kept = {}
    with torch.no_grad():
        for number, layer in found.items():
            order = neuron_saliency(layer).argsort(descending=True, stable=True)
            kept[number] = layer, order[:intermediate_rank].sort().values
            layer.keep(kept[number][1])
    return kept


def distillation_loss(
    teacher: Sequence[nn.Module] | nn.ModuleList,
    student: Mapping[int, FeedForward],
    teacher_states: Sequence[Tensor],
    student_states: Sequence[Tensor],
    alpha: float,
    form: Literal["paper", "released"],
) -> Tensor:
    """Return the layer-level loss, a scalar: mean over the compressed layers of two relative squared errors.

    The first is that of the layer's output, the second, times ``alpha``, that of the product of its two matrices.
    ``teacher``: the whole model's blocks. ``student``: the compressed feed-forwards by layer. States: every block's
    output (N, T, D), of all tokens. ``released`` gives the second error no gradient, as the published code has it.
    """
    losses = []
    for number, layer in student.items():
        product = layer.product()
        if form == "released":
            product = product.detach()
        whole = find_feed_forward(teacher[number], f"layer {number} of the model").product().detach()
        states = relative_error(student_states[number], teacher_states[number].detach())
        losses.append(states + alpha * relative_error(product, whole))
    return torch.stack(losses).mean()


def relative_error(found: Tensor, expected: Tensor) -> Tensor:
    """Return the mean squared error over the mean square of what is expected, a scalar."""
    return F.mse_loss(found, expected) / expected.square().mean()


def _linear(block: nn.Module, path: str) -> nn.Linear:
    module = block.get_submodule(path)
    assert isinstance(module, nn.Linear), "find_feed_forward takes no others"
    return module


def _replace(block: nn.Module, path: str, weight: Tensor, bias: Tensor | None) -> None:
    """Put a linear layer of these values at ``path``, trained or frozen as the one before."""
    old = _linear(block, path)
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    new.weight = nn.Parameter(weight.detach().clone(), requires_grad=old.weight.requires_grad)
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().clone(), requires_grad=old.weight.requires_grad)
    parent, _, name = path.rpartition(".")
    setattr(block.get_submodule(parent), name, new)
