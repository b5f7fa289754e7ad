"""Client-level privacy: all that a client lets out is clipped as one vector, and gets Gaussian noise.

What clients send is whole numbers of a lattice's steps, weighted by fixed public numbers, so that the sum, the noise
and the sensitivity are exact. Shapes: K clients in a block, T tensors of a message.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, Facts, Payload, Phase, ServerState, Tensors, Update
from fedsim.config.privacy import ClientLevel, QuantileClipping, TensorClipping
from fedsim.errors import UserError
from fedsim.privacy.discrete_gaussian import Lattice
from fedsim.privacy.layer import Layer
from fedsim.privacy.messages import MEAN, groups_of, message_of, norms_of, scaled, shrink, sums_of

BOUND = "privacy/bound"
#: The group of totals that carries the steps, and the number of unclipped clients among them.
STEPS, COUNT = "private", "unclipped"


@dataclass(frozen=True)
class Noise:
    """How much noise there is, and over whom a sum goes.

    ``multiplier``: deviation over the sensitivity to one client more or less. ``weights``: of all clients in a mean,
    float64, fixed whoever takes part. ``expected``: how many take part. ``shares``: how many clients' shares make a
    distributed noise.
    """

    multiplier: float
    weights: Tensor
    expected: float
    shares: int


class ClientLevelLayer(Layer):
    """McMahan et al., Learning differentially private recurrent language models, ICLR 2018, algorithm 1.

    Flat clipping by default; by tensor; or at a bound that follows a quantile (Andrew et al., NeurIPS 2021). Totals
    travel times the largest weight, so that their sum is as sensitive as the means'. Without noise the clipped message
    stays as it was.
    """

    def __init__(self, facts: Facts, seed: int, mechanism: ClientLevel, noise: Noise) -> None:
        super().__init__(facts, seed)
        self.mechanism = mechanism
        self.noise = noise
        clipping = mechanism.clipping
        if isinstance(clipping, QuantileClipping) and 2 * clipping.count_noise <= noise.multiplier:
            found = f"{clipping.count_noise:g}, which costs more than a noise multiplier of {noise.multiplier:g} in all"
            expected = f"more than half the noise multiplier, {noise.multiplier / 2:g}"
            raise UserError("privacy.mechanism.clipping.count_noise", found, expected)

    def init_server(self) -> Tensors:
        if not isinstance(self.mechanism.clipping, QuantileClipping):
            return {}
        return {BOUND: torch.tensor(self.mechanism.bound, dtype=torch.float64)}

    def bound(self, state: ServerState) -> float:
        """The largest norm of a message in this phase."""
        return float(state.layers.get(BOUND, self.mechanism.bound))

    def to_clip(self, state: ServerState, message: Tensors) -> Tensors:
        """Return what is clipped and gets noise in place of the message, float64 (K, ...)."""
        return message

    def from_noisy(self, state: ServerState, sums: Tensors) -> Tensors:
        """Return the sums of messages of those of what ``to_clip`` returned."""
        return sums

    def pre_aggregate(self, state: ServerState, update: Update, payload: Payload) -> Payload:
        message = self.to_clip(state, message_of(payload))
        if not message:
            return payload
        clipped, unclipped_K = self._clipped(message, len(update.clients), self.bound(state))
        if self.noise.multiplier == 0:
            return Payload(**groups_of(clipped))
        if self.mechanism.noise == "local":
            lattice = Lattice.for_noise(self.noise.multiplier * self.bound(state))
            noises = self._own_noise(update, clipped, lattice)
            noisy = {key: (lattice.round(v) + noises[key]).double() * lattice.step for key, v in clipped.items()}
            return Payload(**groups_of(noisy))
        lattice = self.lattice(state)
        weights_KT = torch.stack([self._weights(key)[list(update.clients)] for key in clipped], 1)
        steps = {key: lattice.round(value) for key, value in scaled(clipped, weights_KT).items()}
        if self.mechanism.noise == "distributed":
            noises = self._own_noise(update, steps, lattice)
            steps = {key: value + noises[key] for key, value in steps.items()}
        if (count := self._count_lattice()) is not None:
            steps[COUNT] = count.round(unclipped_K.double() - 0.5)
        return Payload(total={STEPS: steps})

    def post_aggregate(self, state: ServerState, phase: Phase, aggregate: Aggregate) -> tuple[ServerState, Aggregate]:
        if STEPS not in aggregate.total:
            return state, Aggregate(aggregate.clients, **groups_of(self.from_noisy(state, sums_of(aggregate))))
        sums, lattice = dict(sorted(aggregate.total[STEPS].items())), self.lattice(state)
        count = sums.pop(COUNT, None)
        if self.mechanism.noise == "central":
            stream = self.stream(state.round + 1, phase.name)
            sums = {key: v + lattice.noise(stream, tuple(v.shape)).to(v.device) for key, v in sums.items()}
        longest = float(self.noise.weights.max())
        steps = {key: lattice.step if key.startswith(MEAN) else lattice.step / longest for key in sums}
        noisy = self.from_noisy(state, {key: value.double() * steps[key] for key, value in sums.items()})
        if count is not None:
            state = self._with_next_bound(state, phase, float(count))
        return state, Aggregate(aggregate.clients, **groups_of(noisy))

    def lattice(self, state: ServerState) -> Lattice:
        """The lattice of what clients send: of the noise that is drawn at one place."""
        sigma = self.update_multiplier * float(self.noise.weights.max()) * self.bound(state)
        shares = self.noise.shares if self.mechanism.noise == "distributed" else 1
        return Lattice.for_noise(sigma / math.sqrt(shares))

    @property
    def update_multiplier(self) -> float:
        """The multiplier of the noise on messages, beside a count that spends a part (Andrew et al., theorem 1)."""
        clipping, z = self.mechanism.clipping, self.noise.multiplier
        if not isinstance(clipping, QuantileClipping) or z == 0:
            return z
        # Late: accounting brings dp-accounting, which takes most of a second.
        from fedsim.privacy.accounting import beside_count

        return beside_count(z, clipping.count_noise)

    def _weights(self, key: str) -> Tensor:
        """All clients' weights of what stands under a key."""
        weights = self.noise.weights
        return weights if key.startswith(MEAN) else weights.max().expand(len(weights))

    def _clipped(self, message: Tensors, num_clients: int, bound: float) -> tuple[dict[str, Tensor], Tensor]:
        """Return the clipped tensors, and which messages stayed whole, bool (K,)."""
        norms_KT = norms_of(message, num_clients)
        if isinstance(self.mechanism.clipping, TensorClipping):
            factors_KT = shrink(norms_KT, bound / math.sqrt(max(1, len(message))))
        else:
            factors_KT = shrink(norms_KT.square().sum(1, keepdim=True).sqrt(), bound).expand(-1, len(message))
        return scaled(message, factors_KT), (factors_KT == 1).all(1)

    def _own_noise(self, update: Update, like: Tensors, lattice: Lattice) -> dict[str, Tensor]:
        """Draw noise for tensors (K, ...), every client from a stream of its own, int64 steps."""
        streams = [self.stream(update.round, update.phase.name, client + 1) for client in update.clients]
        noises = {key: torch.zeros(value.shape, dtype=torch.int64) for key, value in like.items()}
        for key, noise in noises.items():
            for row, stream in zip(noise, streams, strict=True):
                row.copy_(lattice.noise(stream, tuple(row.shape)))
            noises[key] = noise.to(like[key].device)
        return noises

    def _count_lattice(self) -> Lattice | None:
        clipping = self.mechanism.clipping
        return Lattice.for_noise(clipping.count_noise) if isinstance(clipping, QuantileClipping) else None

    def _with_next_bound(self, state: ServerState, phase: Phase, count: float) -> ServerState:
        """Move the bound's logarithm by what the noisy share of unclipped clients is off the quantile."""
        clipping, lattice = self.mechanism.clipping, self._count_lattice()
        assert isinstance(clipping, QuantileClipping)
        assert lattice is not None
        stream = self.stream(state.round + 1, f"{phase.name}/{COUNT}")
        noisy = (count + float(lattice.noise(stream, (1,))[0])) * lattice.step
        share = noisy / self.noise.expected + 0.5
        bound = self.bound(state) * math.exp(-clipping.rate * (share - clipping.quantile))
        return replace(state, layers={**state.layers, BOUND: torch.tensor(bound, dtype=torch.float64)})
