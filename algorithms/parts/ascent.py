"""Steps up the loss, for methods that look for flat optima: sharpness-aware minimisation and its relatives.

Shapes: K clients, and perhaps M models of each, in front of every parameter's own axes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsim.algorithms.base import beside
from fedsim.models.specs import ParamSpec

# Against division by zero, as in HarmoFL's released code.
TINY = 1e-12
# Added to the weights' sizes, so that those that are zero move too (Kwon et al., 2021).
ASAM_ETA = 0.01


def steepest(grads: Mapping[str, Tensor], specs: Mapping[str, ParamSpec], radius: float) -> dict[str, Tensor]:
    """Return radius * g / (||g||_2 + 1e-12), the norm over all parameters of a client's model.

    Foret et al., Sharpness-aware minimization for efficiently improving generalization, ICLR 2021. It is HarmoFL's
    weight perturbation, with alpha for the radius.
    """
    norm = _norm(grads, specs)
    return {name: grad * beside(radius / (norm + TINY), grad) for name, grad in grads.items()}


def adaptive(
    params: Mapping[str, Tensor], grads: Mapping[str, Tensor], specs: Mapping[str, ParamSpec], radius: float
) -> dict[str, Tensor]:
    """Return radius * t^2 g / ||t g||_2 with t = |w| + 0.01, element by element.

    Kwon et al., ASAM, ICML 2021: the radius goes along with the weights' size.
    """
    sizes = {name: value.abs() + ASAM_ETA for name, value in params.items()}
    scaled = {name: sizes[name] * grad for name, grad in grads.items()}
    return {name: sizes[name] * rise for name, rise in steepest(scaled, specs, radius).items()}


def moved(params: Mapping[str, Tensor], change: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters with a change added."""
    return {name: value + change[name] for name, value in params.items()}


def _norm(tensors: Mapping[str, Tensor], specs: Mapping[str, ParamSpec]) -> Tensor:
    """The norm of each model over all tensors, (K,) or (K, M)."""
    leading = {name: value.shape[: value.dim() - len(specs[name].shape)] for name, value in tensors.items()}
    squares = [value.reshape(*leading[name], -1).square().sum(-1) for name, value in tensors.items()]
    return torch.stack(squares).sum(0).sqrt()
