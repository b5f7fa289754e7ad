"""Clipping and noise as DEeR's released code has them, for its own numbers and for the ledger beside them.

Every matrix is clipped by itself, and every client's noise has the deviation z C / sqrt(number of all clients), in
floating point. Shapes: K clients in a block, G slices of a layer, R rank, D input width, O output width of a slice.
Source: DEeR's code, server_funct.py; shared/golden/QUIRKS.md, DEeR 7 to 10.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Facts, Payload, Phase, ServerState, Tensors, Update
from fedsim.config.privacy import NoiseRegulator
from fedsim.errors import UserError
from fedsim.privacy.client_level import Noise
from fedsim.privacy.layer import Layer
from fedsim.privacy.messages import groups_of, message_of, param_of, shrink, sums_of
from fedsim.privacy.noise_regulator import RELATIVE_ZERO, A, gram, peer_of, require_whole

#: The sum over releases of (true sensitivity / deviation)^2, in ``ServerState.layers``.
SPENT = "privacy/mu_squared"


class ReleasedNoise(Layer):
    """Where ``regulated``, the noise of a LoRA factor is shaped by the client's other factor; else it is plain."""

    def __init__(self, facts: Facts, seed: int, mechanism: NoiseRegulator, noise: Noise) -> None:
        super().__init__(facts, seed)
        self.mechanism = mechanism
        self.noise = noise

    def init_server(self) -> Tensors:
        return {SPENT: torch.zeros((), dtype=torch.float64)}

    def pre_aggregate(self, state: ServerState, update: Update, payload: Payload) -> Payload:
        noisy = {}
        for key, value in message_of(payload).items():
            name = param_of(key) or key
            scale = shrink(by_matrix(name, value).norm(dim=2), self.mechanism.bound)
            clipped = (by_matrix(name, value) * scale[..., None]).view_as(value)
            noisy[key] = clipped + self._noise(update, name, value)
        return Payload(**groups_of(noisy))

    def post_aggregate(self, state: ServerState, phase: Phase, aggregate: Aggregate) -> tuple[ServerState, Aggregate]:
        spent = state.layers[SPENT] + self._mu_squared(state, [param_of(key) or key for key in sums_of(aggregate)])
        return replace(state, layers={**state.layers, SPENT: spent}), aggregate

    @property
    def deviation(self) -> float:
        """The standard deviation of every client's noise, before its shape."""
        return self.noise.multiplier * self.mechanism.bound / math.sqrt(self.facts.num_clients)

    def _noise(self, update: Update, name: str, like: Tensor) -> Tensor:
        """Every client's noise, as ``like`` (K, ...)."""
        peer = peer_of(name) if self.mechanism.regulated else None
        if peer is None:
            return self.draw(update, name, tuple(like.shape[1:])).to(like.device)
        require_whole(name, like, update.before[name])
        factor = update.after.get(peer, update.before[peer]).double()
        factor = factor.expand(len(like), *factor.shape[-3:])
        inverse = _inverse(peer, gram(peer, factor))
        if name.endswith(A):
            white = self.draw(update, name, (*factor.shape[1:-1], like.shape[-1])).to(like.device)
            return inverse @ factor.transpose(-1, -2) @ white
        white = self.draw(update, name, (*like.shape[1:-1], factor.shape[-1])).to(like.device)
        return white @ factor.transpose(-1, -2) @ inverse

    def draw(self, update: Update, name: str, shape: tuple[int, ...]) -> Tensor:
        """Draw white noise of that shape for every client, float64 (K, ...)."""
        purpose = f"{update.phase.name}/{name}"
        streams = [self.stream(update.round, purpose, client) for client in update.clients]
        rows = [torch.from_numpy(stream.normal(0, self.deviation, shape)) for stream in streams]
        return torch.stack(rows) if rows else torch.zeros(0, *shape, dtype=torch.float64)

    def _mu_squared(self, state: ServerState, names: Sequence[str]) -> float:
        """Return (sensitivity / deviation)^2 of a phase's sum to one client more or less, in the noise's geometry.

        A matrix that was clipped to C may be as long as C times its peer's largest singular value there. Where a
        client's noise takes its shape from a factor that the client trained there is no bound.
        """
        weights, factors = self.noise.weights, 0.0
        for name in names:
            peer, num_matrices = peer_of(name), self.facts.specs[name].shape[0] if peer_of(name) else 1
            if peer is None or not self.mechanism.regulated:
                factors += num_matrices
            elif peer in names:
                return math.inf
            else:
                factors += float(torch.linalg.eigvalsh(gram(peer, state.params[peer]))[..., -1].sum())
        if self.deviation == 0:
            return math.inf
        longest = float(weights.max()) * self.mechanism.bound
        return factors * longest**2 / (self.deviation**2 * float(weights.square().sum()))


def by_matrix(name: str, value: Tensor) -> Tensor:
    """Return (K, G, ...) as (K, G, N) for a LoRA factor's G matrices, and (K, ...) as (K, 1, N) for others."""
    num_matrices = value.shape[1] if peer_of(name) else 1
    return value.reshape(len(value), num_matrices, math.prod(value.shape[1:]) // num_matrices)


def _inverse(name: str, gram_KGRR: Tensor) -> Tensor:
    eigenvalues = torch.linalg.eigvalsh(gram_KGRR)
    if bool((eigenvalues[..., 0] <= RELATIVE_ZERO * eigenvalues[..., -1]).any()):
        found = f"released with a {name} without full rank, whose inverse shapes the noise"
        raise UserError("privacy.mechanism.form", found, "whitened, or a method that trains B before A")
    inverse: Tensor = torch.linalg.inv(gram_KGRR)
    return inverse
