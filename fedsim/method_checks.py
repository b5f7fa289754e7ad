"""What a method's hooks return, checked where the engine takes it: a slip is one line that names method and hook.

A wrong shape often computes something, of another size for another block, so nothing here is left to chance.

Shapes: K clients, M models of a client.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, NoReturn

import torch
from torch import Tensor

from fedsim.algorithms.base import PARAMS, Algorithm, Payload, Phase, ServerState, Start
from fedsim.errors import UserError
from fedsim.models.specs import ParamSpec

# How far a gradient of a block may be from the one that a client alone has, relative to its norm: what rounding leaves.
AGREEMENT = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 0.1}


def refuse(method: Algorithm, hook: str, found: str, expected: str) -> NoReturn:
    """Raise the UserError of a hook that returned something else."""
    raise UserError(f"{type(method).__name__}.{hook}", found, expected)


def check_names(method: Algorithm) -> None:
    """No public method whose name is a hook's but for a letter or two: nobody would call it."""
    hooks = [name for name, value in vars(Algorithm).items() if callable(value) and not name.startswith("_")]
    own = type(method).__mro__[: type(method).__mro__.index(Algorithm)]
    for name in {name for part in own for name, value in vars(part).items() if callable(value)} - set(hooks):
        if near := get_close_matches(name, hooks, 1, 0.85):
            refuse(method, name, "a name that is no hook's", f"{near[0]}, or another name for what is no hook")


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


def check_start(method: Algorithm, start: Any, specs: Mapping[str, ParamSpec], num_clients: int, models: int) -> None:
    """A start whose tensors have a client axis."""
    if not isinstance(start, Start):
        refuse(method, "begin", shown(start), "a Start")
    axes = [(num_clients,), (num_clients, models)] if models > 1 else [(num_clients,)]
    check_params(method, "begin", start.params, specs, axes)
    check_groups(method, "begin", "context", start.context, num_clients)


def check_groups(method: Algorithm, hook: str, what: str, groups: Any, num_clients: int) -> None:
    """Tensors (K, ...) by group and name."""
    if not isinstance(groups, Mapping):
        refuse(method, hook, f"{what}: {shown(groups)}", "a mapping of groups to names to tensors")
    for group, tensors in groups.items():
        if not isinstance(tensors, Mapping) or "/" in group:
            refuse(
                method, hook, f"{what}: {group}: {shown(tensors)}", "a mapping of names to tensors, no / in the group"
            )
        for name, value in tensors.items():
            if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != num_clients:
                expected = f"a tensor ({num_clients}, ...), a row for each client of the block"
                refuse(method, hook, f"{what}: {group}: {name}: {shown(value)}", expected)


def check_gradient(method: Algorithm, found: Any, answers: Sequence[Mapping[str, Tensor]]) -> None:
    """A gradient like those that ``grad_of`` gave, or None, by name."""
    if not answers:
        refuse(method, "gradient", "no call of grad_of", "one or more: the losses are those of the first")
    if not isinstance(found, Mapping) or found.keys() != answers[0].keys():
        names = sorted(found.keys() ^ answers[0].keys())[0] if isinstance(found, Mapping) else shown(found)
        refuse(method, "gradient", names, "the names that grad_of returns")
    for name, value in answers[0].items():
        new = found[name]
        if new is None:
            continue
        if not isinstance(new, Tensor) or (new.shape, new.dtype) != (value.shape, value.dtype):
            refuse(method, "gradient", f"{name}: {shown(new)}", shown(value))


def check_loss(method: Algorithm, loss: Any, num_clients: int) -> None:
    """A loss for each client, (K,), that depends on what trains."""
    if not isinstance(loss, Tensor) or loss.shape != (num_clients,) or not loss.is_floating_point():
        refuse(method, "loss", shown(loss), f"a float tensor ({num_clients},), a loss for each client of the block")
    if not loss.requires_grad:
        refuse(method, "loss", "a tensor without gradient", "losses that depend on what trains")


def check_payload(method: Algorithm, payload: Any, num_clients: int) -> None:
    """A payload of tensors (K, ...)."""
    if not isinstance(payload, Payload):
        refuse(method, "pre_aggregate", shown(payload), "a Payload")
    for kind in (field.name for field in fields(Payload)):
        check_groups(method, "pre_aggregate", kind, getattr(payload, kind), num_clients)
    twice = payload.mean.keys() & payload.total.keys()
    if twice:
        refuse(method, "pre_aggregate", f"{min(twice)} in mean and total", "each group in one of them")
    if unknown := payload.mean.get(PARAMS, {}).keys() - method.specs.keys():
        refuse(method, "pre_aggregate", f"{PARAMS}: a tensor {min(unknown)!r}", "names of parameters of the model")


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
    if after.layers.keys() != before.layers.keys() or any(after.layers[n] is not v for n, v in before.layers.items()):
        refuse(method, "post_aggregate", "other layers", "those of the state before: dataclasses.replace keeps them")
    for name, extra in after.extra.items():
        if not isinstance(extra, Tensor):
            refuse(method, "post_aggregate", f"extra: {name}: {shown(extra)}", "a tensor")


def check_kept(method: Algorithm, kept: Sequence[Mapping[str, Any]]) -> None:
    """Clients keep tensors, in the groups that the method names."""
    for own in kept:
        for name, value in own.items():
            if not isinstance(value, Tensor):
                refuse(method, "pre_aggregate", f"{name!r} kept as {shown(value)}", "tensors, see keep")
            if name.partition("/")[0] not in (*method.keeps, "optimizer"):
                refuse(method, "pre_aggregate", f"{name!r} kept", f"groups that keeps names: {method.keeps}")


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
