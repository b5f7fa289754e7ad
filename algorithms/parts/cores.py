"""Methods whose clients train a small matrix C between two fixed bases: the update of a layer is B C A.

Its mean over clients is exact, since B and A are common. In training the core lies in the first R rows of ``lora_b``
and zeros in all others, so that any optimiser works on the core's own elements; the server's ``lora_b`` is B C.

Shapes: K clients in a block, G slices of a layer, R rank, D input width, O output width of a slice. A (G, R, D),
B (G, O, R) and C (G, R, R).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedsim.algorithms import base
from fedsim.errors import UserError

#: The core is what the server tells and clients send. The basis B a client has no need to be told again.
BASIS, CORE = "basis", "core"


class Cores(base.Algorithm):
    """The phase ``CORES``: the core between the bases that the server holds trains and is averaged, A is fixed.

    What a client is told is counted as A, ``lora_b`` in the place of B, which is as large, and the core.
    """

    keeps = (BASIS,)
    CORES = base.Phase("cores", base.TRAINED_KINDS - {"lora_a"})

    def __init__(self, config: Any, facts: base.Facts) -> None:
        super().__init__(config, facts)
        #: The names of all B, and the A of each.
        self.pairs = {n: n.removesuffix("b") + "a" for n, spec in self.specs.items() if spec.kind == "lora_b"}
        if not self.pairs:
            raise UserError("model.lora", f"null with {type(self).__name__}", "a section, {} for its defaults")
        for b, a in self.pairs.items():
            (*_, width, rank), (*_, depth) = self.specs[b].shape, self.specs[a].shape
            if rank > min(width, depth):
                found = f"{rank}, more than the widths {width} and {depth} of {b.removesuffix('.lora_b')}"
                raise UserError("model.lora.r", found, f"{min(width, depth)} or less")

    def held(
        self, state: base.ServerState, basis: Mapping[str, Tensor], core: Mapping[str, Tensor]
    ) -> base.ServerState:
        """Return the state with these bases B and cores, by the names of B; ``lora_b`` becomes their product."""
        groups = {BASIS: basis, CORE: core}
        extra = {f"{group}/{name}": value for group, tensors in groups.items() for name, value in tensors.items()}
        params = {name: basis[name] @ core[name] for name in self.pairs}
        return replace(state, params={**state.params, **params}, extra={**state.extra, **extra})

    def parts(self, state: base.ServerState) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what ``held`` was given, by the names of B."""
        basis, core = ({name: state.extra[f"{group}/{name}"] for name in self.pairs} for group in (BASIS, CORE))
        return basis, core

    def begin(self, state: base.ServerState, phase: base.Phase, kept: Sequence[base.Tensors]) -> base.Start:
        basis, core = ({n: v.expand(len(kept), *v.shape) for n, v in part.items()} for part in self.parts(state))
        return base.Start({n: _widened(core[n], value) for n, value in basis.items()}, {BASIS: basis, CORE: core})

    def gradient(self, params: base.Tensors, grad_of: base.GradOf, step: base.Step) -> base.Gradients:
        basis = step.context[BASIS]
        grads = grad_of({**params, **self._products(basis, params)})
        return {**grads, **{name: _widened(value.mT @ grads[name], value) for name, value in basis.items()}}

    def pre_aggregate(self, update: base.Update) -> base.Payload:
        sent, start = self.sent(update.delta), update.context[CORE]
        change = {n: _core_of(update.after[n]).double() - value.double() for n, value in start.items() if n in sent}
        return base.Payload(mean={base.PARAMS: {n: v for n, v in sent.items() if n not in self.pairs}, CORE: change})

    def post_aggregate(self, state: base.ServerState, aggregate: base.Aggregate) -> base.ServerState:
        change = aggregate.mean.get(base.PARAMS, {})
        state = super().post_aggregate(state, replace(aggregate, mean={base.PARAMS: change}))
        basis, core = self.parts(state)
        moved = {name: base.add_exact(core[name], value) for name, value in aggregate.mean[CORE].items()}
        return self.held(state, basis, {**core, **moved})

    def client_params(
        self, kept: Sequence[base.Tensors], params: base.Tensors, update: base.Update | None = None
    ) -> base.Groups:
        if update is None or update.phase != self.CORES:
            return super().client_params(kept, params, update)
        return {"own": {**update.after, **self._products(update.context[BASIS], update.after)}}

    def _products(self, basis: base.Tensors, params: base.Tensors) -> dict[str, Tensor]:
        return {name: value @ _core_of(params[name]) for name, value in basis.items()}


def _core_of(lora_b: Tensor) -> Tensor:
    return lora_b[..., : lora_b.shape[-1], :]


def _widened(core: Tensor, like: Tensor) -> Tensor:
    """Return a core (..., R, R) in the first rows of zeros (..., O, R)."""
    return torch.cat([core, like.new_zeros(like[..., core.shape[-2] :, :].shape)], -2)
