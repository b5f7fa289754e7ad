"""Client-level clipping and Gaussian noise around every method; the skeleton on which accounting will stand.

Shapes: K clients in a block.
"""

import math

import torch

from fedsim.algorithms.base import PARAMS, Aggregate, Facts, Payload, Update, beside
from fedsim.errors import UserError
from fedsim.privacy.layer import Layer


class ClipAndNoise(Layer):
    """McMahan et al., Learning differentially private recurrent language models, ICLR 2018, algorithm 1.

    Each client's changes of parameters are scaled so that their norm over all tensors is at most ``bound``; the
    server adds to their mean noise of standard deviation ``noise`` times the largest weight times the bound. Only that
    mean is protected, so a method that lets out anything else is refused.
    """

    def __init__(self, facts: Facts, seed: int, bound: float, noise: float) -> None:
        super().__init__(facts, seed)
        self.bound = bound
        self.noise = noise

    def pre_aggregate(self, update: Update, payload: Payload) -> Payload:
        others = {*payload.mean, *payload.total, *payload.gather} - {PARAMS}
        if others:
            raise UserError("privacy", f"a method that lets out {min(others)!r}", f"one that sends {PARAMS} alone")
        changes = {name: value.double() for name, value in payload.mean.get(PARAMS, {}).items()}
        norms = torch.cat(
            [value.reshape(len(update.clients), math.prod(value.shape[1:])) for value in changes.values()], 1
        )
        scale = (self.bound / norms.norm(dim=1).clamp(min=self.bound)).to(torch.float64)
        return Payload(mean={PARAMS: {name: beside(scale, value) * value for name, value in changes.items()}})

    def post_aggregate(self, round: int, phase: str, aggregate: Aggregate, largest_weight: float) -> Aggregate:
        stream, deviation = self.stream(round, phase), self.noise * largest_weight * self.bound
        noisy = {
            name: value + torch.from_numpy(stream.normal(0, deviation, tuple(value.shape))).to(value.device)
            for name, value in sorted(aggregate.mean.get(PARAMS, {}).items())
        }
        return Aggregate(aggregate.clients, mean={PARAMS: noisy})
