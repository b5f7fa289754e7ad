"""Fed-SB: only a small core between two fixed bases trains and is averaged, which is exact.

Shapes: K clients in a block, G slices of a layer, R rank, D input width, O output width of a slice. A (G, R, D),
B (G, O, R) and the core C (G, R, R).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from fedsim.algorithms import base
from fedsim.algorithms.parts.cores import CORE, Cores
from fedsim.errors import UserError

RANGE, ROWS = base.Phase("range", base.TRAINED_KINDS - {"lora_a"}), base.Phase("rows")


class FedSB(Cores):
    """Singhal et al., Fed-SB, TMLR 2026, arXiv 2502.15436: the update is B C A, and C = mean(C_k).

    B and A are the singular vectors of a first update and stay, C begins with its singular values. The published code
    has the signs of the full gradient for a first update, which LoRA's gradients do not tell. Here the first round is
    it, by a randomised SVD (Halko et al., SIAM Review 2011, section 5): clients train B from zero with A as it was
    drawn, then A from zero with the orthonormalised mean of B; the singular values and vectors are those of that B
    times the mean of A. Both means are exact. The paper's equations were not read, its page and its code were.
    """

    summary = "a small core between fixed bases from a first update (Singhal et al., 2026)"
    remakes_factors = "begins with factors of its own"
    assumes_true_sums = "in the first round A begins at zero, and its change is of another A"

    def phases(self, round: int) -> tuple[base.Phase, ...]:
        return (RANGE, ROWS) if round == 1 else (self.CORES,)

    def begin(self, state: base.ServerState, phase: base.Phase, kept: Sequence[base.Tensors]) -> base.Start:
        if phase == self.CORES and not state.extra:
            if state.round > 0:
                raise UserError("clients.sampling", "a first round without clients, with fed_sb", "uniform")
            # Asked beforehand what a later round sends: that has the shapes of any core.
            factors = {b: state.params[b] for b in self.pairs}
            cores = {b: v.new_zeros(len(v), 1, v.shape[-1], v.shape[-1]) for b, v in factors.items()}
            state = self.with_cores(state, {b: self.heads(value) for b, value in factors.items()}, cores)
        if phase == self.CORES:
            return super().begin(state, phase, kept)
        drawn = {name: state.params[name] for name in self.pairs.values()} if phase == ROWS else {}
        return base.Start({name: value.new_zeros(len(kept), *value.shape) for name, value in drawn.items()})

    def gradient(self, params: base.Tensors, grad_of: base.GradOf, step: base.Step) -> base.Gradients:
        if step.phase == self.CORES:
            return super().gradient(params, grad_of, step)
        return {n: None if step.phase == ROWS and n in self.pairs else v for n, v in grad_of(params).items()}

    def pre_aggregate(self, update: base.Update) -> base.Payload:
        if update.phase == self.CORES:
            return super().pre_aggregate(update)
        change = self.sent(update.delta)
        if update.phase == ROWS:
            change = {name: value for name, value in change.items() if name not in self.pairs}
        return base.Payload(mean={base.PARAMS: change})

    def post_aggregate(self, state: base.ServerState, aggregate: base.Aggregate) -> base.ServerState:
        if CORE in aggregate.mean:
            return super().post_aggregate(state, aggregate)
        state = base.Algorithm.post_aggregate(self, state, aggregate)
        params = dict(state.params)
        if self.pairs.keys() & aggregate.mean[base.PARAMS].keys():
            params |= {name: torch.linalg.qr(params[name].double())[0].to(params[name]) for name in self.pairs}
            return replace(state, params=params)
        basis, core = {}, {}
        for b, a in self.pairs.items():
            left, values, right = torch.linalg.svd(params[a].double(), full_matrices=False)
            # Of a pair of singular vectors only the product has a sign: the left one's largest element is positive.
            signs = left.take_along_dim(left.abs().argmax(-2, keepdim=True), -2).sign()
            basis[b] = self.heads((params[b].double() @ (left * signs)).to(params[b]))
            core[b] = values.diag_embed().to(params[b])[:, None]
            params[a] = (right * signs.mT).to(params[a])
        return self.with_cores(replace(state, params=params), basis, core)
