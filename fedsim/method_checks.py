"""What a method's hooks return, checked where the engine takes it: a slip is one line that names method and hook.

A wrong shape often computes something, of another size for another block, so nothing here is left to chance.

Shapes: K clients, M models of a client.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn

import torch
from torch import Tensor

from algorithms.base import Algorithm, Payload, Phase, ServerState
from fedsim.errors import UserError
from fedsim.models.specs import ParamSpec

# How far a gradient of a block may be from the one that a client alone has, relative to its norm: what rounding leaves.
AGREEMENT = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 0.1}


def refuse(method: Algorithm, hook: str, found: str, expected: str) -> NoReturn:
    """Raise the UserError of a hook that returned something else."""
    raise UserError(f"{type(method).__name__}.{hook}", found, expected)


def check_phases(method: Algorithm, phases: Any) -> None:
    """Phases, one or more, with distinct names."""
    if not isinstance(phases, Sequence) or not phases or not all(isinstance(phase, Phase) for phase in phases):
        refuse(method, "phases", shown(phases), "a tuple of one Phase or more")
    if len({phase.name for phase in phases}) < len(phases):
        refuse(method, "phases", f"names {[phase.name for phase in phases]}", "a name of its own for each phase")


def check_params(
    method: Algorithm, hook: str, params: Any, specs: Mapping[str, ParamSpec], leading: Sequence[tuple[int, ...]]
) -> None:
    """Parameters by name, in front of whose own axes stands one of ``leading``, such as (K,) or (K, M)."""
    if not isinstance(params, Mapping):
        refuse(method, hook, shown(params), "a mapping of names to tensors")
    for name, value in params.items():
        if name not in specs:
            refuse(method, hook, f"a tensor {name!r}", "names of parameters of the model")
        shapes = [(*axes, *specs[name].shape) for axes in leading]
        if not isinstance(value, Tensor) or tuple(value.shape) not in shapes:
            refuse(method, hook, f"{name}: {shown(value)}", " or ".join(f"a tensor {shape}" for shape in shapes))


def check_loss(method: Algorithm, loss: Any, num_clients: int) -> None:
    """A loss for each client, (K,), that depends on what trains."""
    if not isinstance(loss, Tensor) or loss.shape != (num_clients,) or not loss.is_floating_point():
        refuse(method, "loss", shown(loss), f"a float tensor ({num_clients},), a loss for each client of the block")
    if not loss.requires_grad:
        refuse(method, "loss", "a tensor without gradient", "losses that depend on what trains")


def check_payload(method: Algorithm, payload: Any, num_clients: int) -> None:
    """A payload of tensors (K, ...), each name once."""
    if not isinstance(payload, Payload):
        refuse(method, "pre_aggregate", shown(payload), "a Payload")
    seen: set[str] = set()
    for kind in (field.name for field in fields(Payload)):
        for name, value in getattr(payload, kind).items():
            if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != num_clients:
                expected = f"a tensor ({num_clients}, ...), a row for each client of the block"
                refuse(method, "pre_aggregate", f"{kind}: {name}: {shown(value)}", expected)
            if name in seen:
                refuse(method, "pre_aggregate", f"{name} twice", "each name in one of mean, total and gather")
            seen.add(name)


def check_state(method: Algorithm, before: ServerState, after: Any) -> None:
    """A server's state with the parameters, shapes and types of the one before."""
    if not isinstance(after, ServerState):
        refuse(method, "post_aggregate", shown(after), "a ServerState")
    if after.params.keys() != before.params.keys():
        odd = sorted(after.params.keys() ^ before.params.keys())[0]
        refuse(
            method, "post_aggregate", f"a state {'with' if odd in after.params else 'without'} {odd}", "the same names"
        )
    for name, value in before.params.items():
        new = after.params[name]
        if not isinstance(new, Tensor) or (new.shape, new.dtype) != (value.shape, value.dtype):
            refuse(method, "post_aggregate", f"{name}: {shown(new)}", shown(value))
    for name, extra in after.extra.items():
        if not isinstance(extra, Tensor):
            refuse(method, "post_aggregate", f"extra: {name}: {shown(extra)}", "a tensor")


def check_kept(method: Algorithm, states: Sequence[Mapping[str, Any]]) -> None:
    """Clients keep tensors by name, and only where the method says that they do."""
    for state in states:
        for name, value in state.items():
            if not isinstance(value, Tensor):
                refuse(method, "pre_aggregate", f"{name!r} kept as {shown(value)}", "tensors in a client's state")
            if not method.keeps_client_state and not name.startswith("optimizer/"):
                refuse(method, "pre_aggregate", f"{name!r} in a client's state", "keeps_client_state = True")


def check_agreement(method: Algorithm, stacked_KP: Tensor, alone_KP: Tensor, precision: str) -> float:
    """Return how far a block's gradient is from those that its clients have one by one, relative, and check it.

    The largest over the clients of ||stacked - alone|| / ||alone||.
    """
    distance = (stacked_KP - alone_KP).norm(dim=1) / alone_KP.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    worst = float(distance.max())
    if worst > AGREEMENT[precision]:
        found = f"a gradient that is off by {worst:.1e} of its norm when {len(distance)} clients train in one batch"
        refuse(method, "loss", found, "each client's loss to depend on its own rows alone, with or without others")
    return worst


def shown(value: Any) -> str:
    """Say what was returned, in few words."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return "None" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
