"""Local training of a block of clients as one batch.

All clients of a block go through one forward and one backward pass. The gradient of the sum of their losses is,
row by row, each client's own gradient, since no client's loss contains another's parameters. Clients stand in
the order of their number of steps, so that those still training are always the first rows.

Shapes: K clients in a block, S local steps, B images per step, P trained parameters of one client.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from algorithms.base import Algorithm, Batch, Phase, ServerState, Update
from fedsim.cohort import num_local_steps
from fedsim.config import Config, TrainConfig
from fedsim.images import ImageSource
from fedsim.models.stacked import StackedModel
from fedsim.optim import StackedOptimizer, learning_rate
from fedsim.seeding import numpy_stream


@dataclass(frozen=True)
class Steps:
    """Which images a block's clients see: ``index`` int64 (K, S, B) into the data set, ``weights`` (K, S, B).

    ``active[s]`` clients have a step s and ``widths[s]`` is the largest batch among them.
    """

    index: Tensor
    weights: Tensor
    active: list[int]
    widths: list[int]


def plan_steps(
    parts: Sequence[np.ndarray], clients: Sequence[int], train: TrainConfig, seed: int, round: int, phase: str
) -> Steps:
    """Shuffle each client's images into batches. ``clients`` must be sorted by falling number of steps."""
    batches = [_client_batches(parts[c], train, seed, round, phase, c) for c in clients]
    lengths = [len(own) for own in batches]
    assert lengths == sorted(lengths, reverse=True)
    num_steps, width = max(lengths, default=0), max((len(b) for own in batches for b in own), default=0)
    index = np.zeros((len(clients), num_steps, width), dtype=np.int64)
    weights = np.zeros(index.shape, dtype=np.float32)
    for row, own in enumerate(batches):
        for step, images in enumerate(own):
            # A place that stays empty repeats an image of the same client and has weight zero.
            index[row, step] = images[0]
            index[row, step, : len(images)] = images
            weights[row, step, : len(images)] = 1 / len(images)
    active = [sum(length > step for length in lengths) for step in range(num_steps)]
    widths = [int((weights[:, step] > 0).sum(1).max()) for step in range(num_steps)]
    return Steps(torch.from_numpy(index), torch.from_numpy(weights), active, widths)


def _client_batches(
    images: np.ndarray, train: TrainConfig, seed: int, round: int, phase: str, client: int
) -> list[np.ndarray]:
    stream = numpy_stream(seed, f"shuffle/{phase}", round=round, client=client)
    wanted = num_local_steps(train, len(images))
    batches: list[np.ndarray] = []
    while len(batches) < wanted:
        order = stream.permutation(images) if train.shuffle else images
        batches += [order[at : at + train.batch_size] for at in range(0, len(order), train.batch_size)]
    return batches[:wanted]


class Layout:
    """Where each trained parameter lies in a client's flat vector."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.sizes = [int(np.prod(shape)) for shape in self.shapes.values()]

    def pack(self, params: Mapping[str, Tensor]) -> Tensor:
        """Return the parameters as one vector (P,)."""
        return torch.cat([params[name].flatten() for name in self.shapes])

    def unpack(self, flat_KP: Tensor) -> dict[str, Tensor]:
        """Return named views (K, ...) of the matrix; the backward pass of the split is one concatenation."""
        parts = flat_KP.split(self.sizes, dim=1)
        shapes = self.shapes.items()
        return {name: part.view(len(flat_KP), *shape) for (name, shape), part in zip(shapes, parts, strict=True)}


class BlockTrainer:
    """Trains blocks of clients on this rank's device; holds what does not change between rounds."""

    def __init__(
        self,
        config: Config,
        model: StackedModel,
        algorithm: Algorithm,
        images: ImageSource,
        parts: Sequence[np.ndarray],
    ) -> None:
        self.config = config
        self.model = model
        self.algorithm = algorithm
        self.images = images
        self.parts = parts

    def train(
        self,
        clients: tuple[int, ...],
        weights: Tensor,
        state: ServerState,
        phase: Phase,
        client_states: list[dict[str, Tensor]],
    ) -> tuple[Update, Tensor]:
        """Train the clients from the server's parameters; return their update and mean losses, float64 (K,).

        ``clients`` may be empty: the update then has the shapes of any other, with K = 0.
        """
        round = state.round + 1
        specs = self.model.specs
        kinds = {name: spec.kind for name, spec in specs.items() if spec.kind in phase.kinds}
        layout = Layout({name: specs[name].shape for name in kinds if kinds[name] != "buffer"})
        buffers = {
            name: torch.stack([state.params[name]] * len(clients)) if clients else state.params[name][None][:0]
            for name, kind in kinds.items()
            if kind == "buffer"
        }
        flat_KP = layout.pack(state.params).repeat(len(clients), 1)
        kept = _kept_states(client_states, phase) if self.config.train.keep_optimizer else []
        optimizer = StackedOptimizer(self.config.train, flat_KP, kept)
        steps = plan_steps(self.parts, clients, self.config.train, self.config.seed, round, phase.name)
        losses = self._run_steps(flat_KP, buffers, layout, optimizer, steps, clients, state, phase)
        if self.config.train.keep_optimizer:
            _keep_states(client_states, phase, optimizer)
        after = layout.unpack(flat_KP) | buffers
        return Update(clients, weights, state.params, after, client_states), losses

    def _run_steps(
        self,
        flat_KP: Tensor,
        buffers: Mapping[str, Tensor],
        layout: Layout,
        optimizer: StackedOptimizer,
        steps: Steps,
        clients: tuple[int, ...],
        state: ServerState,
        phase: Phase,
    ) -> Tensor:
        """Take all local steps, changing ``flat_KP`` and ``buffers`` in place; return mean losses (K,)."""
        train = self.config.train
        lr = learning_rate(train.lr, train.schedule, state.round + 1, self.config.rounds)
        self.images.prepare([self.parts[client] for client in clients])
        index, weights = steps.index.to(flat_KP.device), steps.weights.to(flat_KP.device)
        losses = torch.zeros(len(clients), dtype=torch.float64, device=flat_KP.device)
        counts_SK = (steps.weights > 0).sum(2).T.tolist()
        # As wide as a full batch whatever the block holds, so that a client draws the same numbers in any company.
        shape = (index.shape[1], train.batch_size)
        draws = self.images.draw(clients, shape, self.config.seed, state.round + 1, phase.name)
        for step, (active, width) in enumerate(zip(steps.active, steps.widths, strict=True)):
            places = index[:active, step, :width]
            fixed = self.images.training_batch(places, None if draws is None else draws[:active, step, :width])
            leaf = flat_KP[:active].detach().requires_grad_()
            params = {**state.params, **layout.unpack(leaf), **{n: b[:active] for n, b in buffers.items()}}
            batch = Batch(
                self._scores(params, layout, fixed, counts_SK[step][:active], phase),
                self.images.labels[places],
                weights[:active, step, :width],
                params,
                tuple(layout.shapes),
                state.params,
            )
            loss_K = self.algorithm.loss(batch)
            (grad,) = torch.autograd.grad(loss_K.sum(), leaf)
            optimizer.step(flat_KP, grad, lr)
            losses[:active] += loss_K.detach()
        num_steps = (steps.weights > 0).any(2).sum(1)
        return losses.cpu() / num_steps

    def _scores(
        self, params: Mapping[str, Tensor], layout: Layout, fixed: Tensor, counts: list[int], phase: Phase
    ) -> Tensor:
        """Return class scores (K, B, C); ``counts`` (K,) are the clients' own batch sizes, B the largest of them.

        Where layers normalise over the batch, the places that a smaller batch leaves empty must not be seen, so
        clients with equal batch sizes go together. Running statistics that the phase freezes are used, not changed.
        """
        buffers = [name for name, spec in self.model.specs.items() if spec.kind == "buffer"]
        training = "buffer" in phase.kinds
        if not buffers or not training or len(set(counts)) == 1:
            return self.model.forward(params, fixed, training=training)
        scores = fixed.new_zeros(*fixed.shape[:2], self.model.num_classes)
        for count in sorted(set(counts)):
            rows = [row for row, own in enumerate(counts) if own == count]
            stacked = {*layout.shapes, *buffers}
            own = {name: value[rows] if name in stacked else value for name, value in params.items()}
            scores[rows, :count] = self.model.forward(own, fixed[rows, :count], training=True)
            for name in buffers:
                params[name][rows] = own[name]
        return scores


def _kept_states(client_states: list[dict[str, Tensor]], phase: Phase) -> list[dict[str, Tensor]]:
    start = f"optimizer/{phase.name}/"
    return [
        {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        for state in client_states
    ]


def _keep_states(client_states: list[dict[str, Tensor]], phase: Phase, optimizer: StackedOptimizer) -> None:
    for state, row in zip(client_states, optimizer.rows(), strict=True):
        state.update({f"optimizer/{phase.name}/{name}": value for name, value in row.items()})
