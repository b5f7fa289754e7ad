"""A network with parameters of each client's own, applied to all clients of a block at once.

Shapes: K clients in a block.
"""

from collections.abc import Collection, Mapping

from torch import Tensor, nn
from torch.func import functional_call, vmap


def each_client(
    net: nn.Module, params: Mapping[str, Tensor], stacked: Collection[str], inputs: Tensor, *, tied: bool = True
) -> Tensor:
    """Return what ``net`` makes of each client's inputs (K, ...) with its parameters, (K, ...).

    Those named in ``stacked`` have a client axis, the others are all clients' own. One client is the plain network, the
    readable reference. ``tied``: whether a parameter may have several names; looking for them takes time.
    """
    if len(inputs) == 1:
        # Its gradient is a view, too; that of value[0] would be zeros with a copy in them.
        single = {name: value.squeeze(0) if name in stacked else value for name, value in params.items()}
        alone: Tensor = functional_call(net, single, (inputs[0],), tie_weights=tied)
        return alone[None]

    def one_client(own: dict[str, Tensor], own_inputs: Tensor) -> Tensor:
        found: Tensor = functional_call(net, own, (own_inputs,), tie_weights=tied)
        return found

    axes = {name: 0 if name in stacked else None for name in params}
    # Convolutions with a group for each client take weights in the usual order.
    usual = {name: value.contiguous() for name, value in params.items()}
    together: Tensor = vmap(one_client, in_dims=(axes, 0))(usual, inputs)
    return together
