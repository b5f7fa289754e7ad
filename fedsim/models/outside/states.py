"""The weights of a network that trained whole, under the names of the library that it comes from.

Shapes: D width, O output width of a projection.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from fedsim.models.attention import ClipAttention, HuggingAttention
from fedsim.models.tower import Tower

NET = "net."


def own_state(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a ``WholeNet`` under the names of its own network, on the CPU."""
    return {name.removeprefix(NET): value.detach().cpu() for name, value in params.items() if name.startswith(NET)}


def library_state(net: nn.Module, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of the library's state dict that ``params``, of a ``WholeNet`` around ``net``, hold.

    ``params`` of ``net`` begin with "net."; others are left out.
    """
    own = own_state(params)
    if not isinstance(net, Tower):
        return own
    return {library: part for name, value in own.items() for library, part in _renamed(net, name, value)}


def _renamed(tower: Tower, name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The entries of the library's that one of ours stands for: q, k and v may be apart there."""
    path, _, leaf = name.rpartition(".")
    parent, _, word = path.rpartition(".")
    attention = tower.get_submodule(parent)
    if word == "qkv" and isinstance(attention, HuggingAttention):
        for own, part in zip(attention.names, value.chunk(3), strict=False):
            yield f"{tower.source_path(parent)}.{own}.{leaf}", part.clone()
    elif word == "proj" and isinstance(attention, HuggingAttention):
        yield f"{tower.source_path(parent)}.{attention.names[3]}.{leaf}", value
    elif word == "qkv" and isinstance(attention, ClipAttention):
        yield f"{tower.source_path(parent)}.in_proj_{leaf}", value
    elif word == "proj" and isinstance(attention, ClipAttention):
        yield f"{tower.source_path(parent)}.out_proj.{leaf}", value
    else:
        yield tower.source_path(name), value
