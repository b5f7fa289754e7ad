"""Methods whose clients train small matrices between two fixed bases: the update of a layer is sum_h B_h C_h A_h.

Its mean over clients is exact, since B and A are common. In training the cores lie in ``lora_b``, each in the first
rows of its head's columns, with zeros elsewhere, so that any optimiser works on the cores' own elements; the server's
``lora_b`` has B_h C_h in the columns of head h.

Shapes: K clients in a block, G slices of a layer, H heads of rank R_h = R / H, D input width, O output width of a
slice. lora_a (G, R, D) and lora_b (G, O, R) as ever; bases B (G, H, O, R_h) and cores (G, H, R_h, R_h).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedsim.algorithms import base
from fedsim.algorithms.parts.own_ranks import refuse_ranks
from fedsim.errors import UserError

#: The core is what the server tells and clients send. The basis a client has no need to be told again.
BASIS, CORE = "basis", "core"


class Cores(base.Algorithm):
    """The phase ``CORES``: the cores between the bases that the server holds train and are averaged, A is fixed.

    What a client is told is counted as A, ``lora_b`` in the place of B, which is as large, and the cores.
    """

    keeps = (BASIS,)
    num_heads = 1
    CORES = base.Phase("cores", base.TRAINED_KINDS - {"lora_a"})

    def __init__(self, config: Any, facts: base.Facts) -> None:
        super().__init__(config, facts)
        #: The names of all B, and the A of each.
        self.pairs = {n: n.removesuffix("b") + "a" for n, spec in self.specs.items() if spec.kind == "lora_b"}
        if not self.pairs:
            raise UserError("model.lora", f"null with {type(self).__name__}", "a section, {} for its defaults")
        refuse_ranks(facts, type(self).__name__)
        for b, a in self.pairs.items():
            (*_, width, rank), (*_, depth) = self.specs[b].shape, self.specs[a].shape
            if rank > min(width, depth):
                found = f"{rank}, more than the widths {width} and {depth} of {b.removesuffix('.lora_b')}"
                raise UserError("model.lora.r", found, f"{min(width, depth)} or less")

    def begin(self, state: base.ServerState, phase: base.Phase, kept: Sequence[base.Tensors]) -> base.Start:
        basis, core = ({n: v.expand(len(kept), *v.shape) for n, v in part.items()} for part in self.parts(state.extra))
        return base.Start({n: self.slot(core[n], value) for n, value in basis.items()}, {BASIS: basis, CORE: core})

    def gradient(self, params: base.Tensors, grad_of: base.GradOf, step: base.Step) -> base.Gradients:
        basis = step.context[BASIS]
        grads = grad_of({**params, **self.products(basis, {n: self.core(params[n]) for n in basis})})
        found = dict(grads)
        for name, value in basis.items():
            found[name] = self.slot_gradient(value.mT @ self.heads(grads[name]), params[name])
        return found

    def pre_aggregate(self, update: base.Update) -> base.Payload:
        sent, start = self.sent(update.delta), update.context[CORE]
        change = {n: self.core(update.after[n]).double() - value.double() for n, value in start.items() if n in sent}
        return base.Payload(mean={base.PARAMS: {n: v for n, v in sent.items() if n not in self.pairs}, CORE: change})

    def post_aggregate(self, state: base.ServerState, aggregate: base.Aggregate) -> base.ServerState:
        change = aggregate.mean.get(base.PARAMS, {})
        state = super().post_aggregate(state, replace(aggregate, mean={base.PARAMS: change}))
        basis, core = self.parts(state.extra)
        moved = {name: base.add_exact(core[name], value) for name, value in aggregate.mean[CORE].items()}
        return self.with_cores(state, basis, {**core, **moved})

    def client_params(
        self, kept: Sequence[base.Tensors], params: base.Tensors, update: base.Update | None = None
    ) -> base.Groups:
        if update is None or update.phase != self.CORES:
            return super().client_params(kept, params, update)
        cores = {name: self.core(update.after[name]) for name in self.pairs}
        return {"own": {**update.after, **self.products(update.context[BASIS], cores)}}

    def with_cores(self, state: base.ServerState, basis: base.Tensors, core: base.Tensors) -> base.ServerState:
        """Return the state with these bases and cores, by the names of B."""
        extra = {**state.extra, **self.extra(basis, core)}
        return replace(state, params={**state.params, **self.products(basis, core)}, extra=extra)

    def extra(self, basis: base.Tensors, core: base.Tensors) -> dict[str, Tensor]:
        """Return the server's own tensors that hold bases and cores."""
        groups = {BASIS: basis, CORE: core}
        return {f"{group}/{name}": value for group, tensors in groups.items() for name, value in tensors.items()}

    def parts(self, extra: base.Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the bases and the cores that the server's own tensors hold, by the names of B."""
        basis, core = ({name: extra[f"{group}/{name}"] for name in self.pairs} for group in (BASIS, CORE))
        return basis, core

    def products(self, basis: base.Tensors, core: base.Tensors) -> dict[str, Tensor]:
        """Return ``lora_b`` (..., O, R) of bases and cores."""
        return {name: (value @ core[name]).transpose(-3, -2).flatten(-2) for name, value in basis.items()}

    def heads(self, lora_b: Tensor) -> Tensor:
        """Return (..., O, R) as (..., H, O, R_h)."""
        heads: Tensor = lora_b.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
        return heads

    def core(self, slot: Tensor) -> Tensor:
        """Return the cores that lie in ``lora_b`` in training."""
        heads = self.heads(slot)
        return heads[..., : heads.shape[-1], :]

    def slot(self, core: Tensor, basis: Tensor) -> Tensor:
        """Return what lies in ``lora_b`` at the beginning of a training, (..., O, R)."""
        rest = basis[..., core.shape[-1] :, :]
        return torch.cat([core, rest.new_zeros(rest.shape)], -2).transpose(-3, -2).flatten(-2)

    def slot_gradient(self, into_core: Tensor, slot: Tensor) -> Tensor:
        """Return the gradient for what lies in ``lora_b``, from that for the cores; K clients, (K, ...)."""
        return self.slot(into_core, self.heads(slot))
