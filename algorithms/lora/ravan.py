"""Ravan: several small cores between fixed bases, each with a scale that trains beside it.

Shapes: K clients in a block, G slices of a layer, H heads of rank R_h, O output width of a slice; see ``parts/cores``.
"""

import hashlib
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from fedsim.algorithms import base
from fedsim.algorithms.parts.cores import Cores
from fedsim.errors import UserError


class Ravan(Cores):
    """Raje et al., Ravan: multi-head low-rank adaptation for federated fine-tuning, NeurIPS 2025, arXiv 2506.05568.

    The update is sum_h s_h B_h C_h A_h; C_h begins as zero and s_h in every round as one, clients send s_h C_h, and the
    mean is the next C_h. A is what LoRA draws, the columns of all B_h together are orthonormal. Read in notes on the
    paper; its clients of small means, which train some of the heads alone, are not here.

    A head's scale lies below its core, in the first of its columns.
    """

    summary = "several small cores between fixed bases, each with a scale (Raje et al., 2025)"
    remakes_factors = "begins with cores of its own"

    class Config(Cores.Config):
        heads: int = Field(4, ge=1, description="Heads that share the ranks of model.lora.r.")

    def __init__(self, config: Any, facts: base.Facts) -> None:
        super().__init__(config, facts)
        self.num_heads = config.heads
        for name in self.pairs:
            *_, width, rank = self.specs[name].shape
            if rank % config.heads:
                raise UserError("algorithm.heads", str(config.heads), f"a divisor of model.lora.r, {rank}")
            if rank // config.heads >= width:
                raise UserError("model.lora.r", str(rank), f"less than {width * config.heads}, a row for each scale")

    def phases(self, round: int) -> tuple[base.Phase, ...]:
        return (self.CORES,)

    def init_server(self, params: base.Tensors) -> base.Tensors:
        basis, core = {}, {}
        for b, a in self.pairs.items():
            # A stream of the run's own, since A is drawn from one.
            seed = int.from_bytes(hashlib.sha256(params[a].cpu().numpy().tobytes()).digest()[:7])
            drawn = torch.randn(params[b].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            basis[b] = self.heads(torch.linalg.qr(drawn)[0].to(params[b]))
            core[b] = self.core(torch.zeros_like(params[b]))
        return self.extra(basis, core)

    def core(self, slot: Tensor) -> Tensor:
        return super().core(slot) * self._scale(slot)

    def slot(self, core: Tensor, basis: Tensor) -> Tensor:
        found = super().slot(core, basis)
        self._scale(found).fill_(1)
        return found

    def slot_gradient(self, into_core: Tensor, slot: Tensor) -> Tensor:
        found = super().slot_gradient(into_core * self._scale(slot), slot)
        self._scale(found).copy_((into_core * super().core(slot)).sum((-2, -1), keepdim=True))
        return found

    def _scale(self, slot: Tensor) -> Tensor:
        """Return a view of the scales in ``lora_b``, (..., H, 1, 1)."""
        heads = self.heads(slot)
        rank = heads.shape[-1]
        return heads[..., rank : rank + 1, :1]
