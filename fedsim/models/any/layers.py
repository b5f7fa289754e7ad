"""Which layers of a network get LoRA, and putting it there.

A network of any kind is told nothing but by its modules' names: the words of ``model.lora.target`` are the ends of
their paths, but for those that have a meaning of their own (below). A layer is adapted where it is PyTorch's own
nn.Linear or nn.Conv2d: what inherits from these often computes something else with the weight.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fedsim.config.words import ALL_CONV, ALL_LINEAR, LoraConfig
from fedsim.errors import UserError
from fedsim.kernels.frozen import cast_products, plain
from fedsim.models.any.conv import LoRAConv2d, check_conv
from fedsim.models.lora import QKV, LoraLayer, LoRALinear, LowRank, adapted, endings

WHERE = "model.lora.target"
#: What libraries call the projections of an attention that does not fuse them, and its output.
SAME_AS = {
    "q": ("q", "q_proj", "query", "q_lin", "to_q"),
    "k": ("k", "k_proj", "key", "k_lin", "to_k"),
    "v": ("v", "v_proj", "value", "v_lin", "to_v"),
    "proj": ("proj", "o_proj", "out_proj", "out_lin", "attention.output.dense"),
}


@dataclass(frozen=True)
class Place:
    """A layer to be adapted: its path, the words that mean it, and for linear layers which of how many slices."""

    path: str
    module: nn.Module
    words: tuple[str, ...]
    num_slices: int = 1
    slices: tuple[int, ...] = (0,)


class AnyLinear(LoRALinear):
    """An adapted linear layer in a module that may look at the weight, its type say: it sees the frozen one.

    A module that multiplies by it passes the factors by; ``probe`` notices.
    """

    @property
    def weight(self) -> Tensor:
        """The frozen weight."""
        return plain(self.base.weight)

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base.bias


def add_anywhere(root: nn.Module, prefix: str, config: LoraConfig, *, in_bf16: bool) -> list[LoraLayer]:
    """Replace the targeted layers below ``root``, whose own path is ``prefix``, and return them in order.

    UserError for a word that no layer matches, for a convolution that peft could not adapt, and for a layer that shares
    its weight.
    """
    layers, places = [], find(root, config)
    _check_own(root, places)
    for place in places:
        layer: LowRank
        if isinstance(place.module, nn.Conv2d):
            check_conv(place.module, place.path, config)
            layer = LoRAConv2d(place.module, config.scaling(config.r))
        else:
            assert isinstance(place.module, nn.Linear), "find returns nothing else"
            if in_bf16:
                cast_products(place.module)
            layer = adapted(place.module, place.num_slices, place.slices, config, place.path, AnyLinear)
        parent, _, name = place.path.rpartition(".")
        setattr(root.get_submodule(parent), name, layer)
        layers.append(LoraLayer(f"{prefix}.{place.path}", layer, config.r // len(layer_groups(layer))))
    return layers


def _check_own(root: nn.Module, places: Sequence[Place]) -> None:
    """UserError for a layer whose weight another has, too: merged into it, an update would be in both."""
    owners: dict[int, list[str]] = {}
    for path, module in root.named_modules():
        for value in module.parameters(recurse=False):
            owners.setdefault(value.data_ptr(), []).append(path)
    for place in places:
        weight = place.module.weight
        assert isinstance(weight, Tensor), "a layer of these kinds has one"
        others = [path for path in owners.get(weight.data_ptr(), ()) if path != place.path]
        if others and weight.numel():
            raise UserError(
                WHERE,
                f"{place.path}, which shares its weight with {others[0]}",
                "layers with weights of their own: merged, LoRA on one would change both",
            )


def layer_groups(layer: LowRank) -> Sequence[int]:
    """The groups of a convolution, among which the ranks are divided; one of a linear layer."""
    return layer.slices if isinstance(layer, LoRAConv2d) else (0,)


def find(root: nn.Module, config: LoraConfig) -> list[Place]:
    """Return the targeted layers below ``root`` in order; UserError for a word that means none of them."""
    modules = dict(named_layers(root))
    places = [place for path, module in modules.items() if (place := _place(path, module, config.target))]
    used = {word for place in places for word in place.words}
    if missing := [word for word in config.target if word not in used]:
        raise UserError(WHERE, missing[0], _known(modules, config.target))
    return places


def named_layers(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers of ``root`` that may be adapted, by their paths."""
    return ((path, module) for path, module in root.named_modules() if type(module) in (nn.Linear, nn.Conv2d))


def _place(path: str, module: nn.Module, target: Sequence[str]) -> Place | None:
    dotted, last = f".{path}", path.rpartition(".")[2]
    if isinstance(module, nn.Conv2d):
        words = [word for word in target if word == ALL_CONV or (word not in SAME_AS and dotted.endswith(f".{word}"))]
        return Place(path, module, tuple(words)) if words else None
    if ALL_LINEAR in target:
        return Place(path, module, (ALL_LINEAR,))
    wanted = [word for word in QKV if word in target]
    if last == "qkv" and wanted:
        return Place(path, module, tuple(wanted), 3, tuple(QKV.index(word) for word in wanted))
    words = [word for word in target if dotted.endswith(meanings(word))]
    return Place(path, module, tuple(words)) if words else None


def meanings(word: str) -> tuple[str, ...]:
    """How the paths of the linear layers end that a word means."""
    return tuple(f".{name}" for name in SAME_AS[word]) if word in SAME_AS else endings(word)


def _known(modules: Mapping[str, nn.Module], target: Sequence[str]) -> str:
    """What a network has that could be targeted."""
    ends = {
        kind: sorted({path.rpartition(".")[2] for path, module in modules.items() if isinstance(module, kind)})
        for kind in (nn.Linear, nn.Conv2d)
    }
    parts = []
    if ends[nn.Linear] and ALL_LINEAR not in target:
        parts.append(f"{ALL_LINEAR}, {', '.join(ends[nn.Linear])} (linear layers)")
    if ends[nn.Conv2d] and ALL_CONV not in target:
        parts.append(f"{ALL_CONV}, {', '.join(ends[nn.Conv2d])} (convolutions)")
    return " or ".join(parts) or "no more words"
