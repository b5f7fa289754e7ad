"""LA-LoRA: B and A move in turn from step to step, along gradients without their high frequencies. N: along an axis."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Facts, Gradients, GradOf, Step, Tensors
from fedsim.errors import UserError

#: Five taps of a binomial, close to a Gaussian.
TAPS = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
#: How much the published code moves B of what it moves A.
B_RATE = 2


class LALoRA(Algorithm):
    """Liu et al., Rethinking LoRA for privacy-preserving federated learning, ICLR 2026, arXiv 2602.19926.

    Odd steps move B, even ones A, the head all of them; a factor that has not its turn stands still. The filter goes
    along A's rows and B's columns, the borders mirrored with their last value twice. It works on what record-level
    privacy has made noisy, and costs no privacy. Read in notes on the paper (its sections on the method and training).

    ``released``, the published code with SGD: even steps move B and B twice as far; every parameter moves along its
    gradient plus its gradient smoothed by (1 - Laplacian)^-1 on a torus, of the factors in two dimensions. Its weight
    decay of B, twice that of A, is not here.
    """

    summary = "B and A in turn from step to step, gradients low-pass filtered (Liu et al., 2026)"

    class Config(Algorithm.Config):
        form: Literal["paper", "released"] = Field("paper", description="Which factor is first, and the filter.")
        filter: bool = Field(True, description="Whether gradients are filtered.")

    def __init__(self, config: Any, facts: Facts) -> None:
        super().__init__(config, facts)
        if not {"lora_a", "lora_b"} <= {spec.kind for spec in self.specs.values()}:
            raise UserError("model.lora", "null with algorithm.name: la_lora", "a section, {} for its defaults")

    def gradient(self, params: Tensors, grad_of: GradOf, step: Step) -> Gradients:
        is_released = self.config.form == "released"
        waits = "lora_a" if (step.number % 2 == 1) == is_released else "lora_b"
        changed = self._released if is_released else self._filtered
        return {n: None if self.specs[n].kind == waits else changed(n, v) for n, v in grad_of(params).items()}

    def _filtered(self, name: str, grad: Tensor) -> Tensor:
        kind = self.specs[name].kind
        if not self.config.filter or kind not in ("lora_a", "lora_b"):
            return grad
        return smoothed(grad) if kind == "lora_a" else smoothed(grad.mT).mT

    def _released(self, name: str, grad: Tensor) -> Tensor:
        kind = self.specs[name].kind
        rated = B_RATE * grad if kind == "lora_b" else grad
        if not self.config.filter:
            return rated
        if kind in ("lora_a", "lora_b"):
            return rated + on_torus(grad, 2)
        return rated + on_torus(grad.reshape(len(grad), -1), 1).view_as(grad)


def smoothed(rows: Tensor) -> Tensor:
    """Return rows (..., N), convolved with ``TAPS``."""
    wide = torch.cat([rows[..., :2].flip(-1), rows, rows[..., -2:].flip(-1)], -1)
    return torch.stack([tap * wide[..., at : at + rows.shape[-1]] for at, tap in enumerate(TAPS)]).sum(0)


def on_torus(values: Tensor, num_axes: int) -> Tensor:
    """Return (1 - L)^-1 of values along their last axes, L the differences to the neighbours, the ends each other's."""
    if 1 in values.shape[-num_axes:]:
        return values
    kernel, axes = values.new_zeros(values.shape[-num_axes:]), tuple(range(-num_axes, 0))
    for axis in range(num_axes):
        for neighbour in (1, -1):
            # As in the published code: where there are but two, they are each other's only neighbour.
            kernel[tuple(neighbour if a == axis else 0 for a in range(num_axes))] = 1
    kernel[(0,) * num_axes] = -2.0 * num_axes
    found: Tensor = torch.fft.ifftn(torch.fft.fftn(values, dim=axes) / (1 - torch.fft.fftn(kernel)), dim=axes).real
    return found
