"""PF2LoRA: a client's own pair of factors is the lower level of two, and the shared one's gradient looks ahead of it.

Shapes: K clients in a block.
"""

import torch

from fedsim.algorithms.base import GradOf, Step, Tensors, beside
from fedsim.algorithms.parts.two_levels import TwoLevels

#: How far apart, in the norm of the own pair, the two gradients are whose difference stands for a second derivative.
REACH = 0.01


class PF2LoRA(TwoLevels):
    """Hao et al., Personalized federated fine-tuning via two-level LoRA, arXiv 2503.03920: own pairs of rank 2.

    W = W_0 + B A + D_k C_k. With x the shared pair and the head, y the client's own pair, y+ = y - lr grad_y f(x, y):
    a step moves y along grad_y f(x, y), and x along the gradient of f(x, y+(x)), which is
    grad_x f(x, y+) - lr grad_xy f(x, y) grad_y f(x, y+). The mixed derivative is a central difference of gradients, so
    that a step takes four. The paper's text was not read: that its problem has two levels and its lower one takes steps
    of SGD is known from its abstract and its reviews. One step as the lower level's answer, and one batch for all four
    gradients, are taken here.
    """

    summary = "an own pair of LoRA factors below the shared one, in two levels (Hao et al., 2025)"

    def gradient(self, params: Tensors, grad_of: GradOf, step: Step) -> Tensors:
        own = self.local(params)
        lower = self.local(grad_of(params))

        def gradient_at(place: Tensors) -> Tensors:
            return grad_of({**params, **self.joined(params, place)})

        upper = gradient_at({name: value - step.lr * lower[name] for name, value in own.items()})
        along = self.local(upper)
        norm_K = torch.stack([value.flatten(1).square().sum(1) for value in along.values()]).sum(0).sqrt()
        # A gradient of zero has no direction, and nothing is taken off then.
        reach_K = REACH / norm_K.clamp(min=torch.finfo(norm_K.dtype).tiny ** 0.5)
        ahead, behind = (
            gradient_at({n: v + sign * beside(reach_K, v) * along[n] for n, v in own.items()}) for sign in (1, -1)
        )
        rate_K = step.lr / (2 * reach_K)
        found = {n: value - beside(rate_K, value) * (ahead[n] - behind[n]) for n, value in upper.items()}
        return {**found, **self.joined(found, lower)}
