"""Local training of a block of clients as one batch.

All clients of a block go through one forward and one backward pass. The gradient of the sum of their losses is,
row by row, each client's own gradient, since no client's loss contains another's parameters. Clients stand in
the order of their number of steps, so that those still training are always the first rows.

Shapes: K clients in a block, M models of a client, R = K M rows, client by client, S local steps, B images per
step, P trained parameters of one model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from algorithms.base import Algorithm, Batch, Phase, ServerState, Update
from fedsim.cohort import num_local_steps
from fedsim.config import Config, TrainConfig
from fedsim.data import Dataset
from fedsim.images import ImageSource
from fedsim.models.stacked import StackedModel
from fedsim.optim import StackedOptimizer, learning_rate
from fedsim.own import OwnImages, macro_f1
from fedsim.seeding import numpy_stream
from fedsim.tasks import task_of


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

    def pack(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Return parameters (K, ...) as one matrix (K, P)."""
        # Sizes by name: without clients -1 would be ambiguous.
        sizes = zip(self.shapes, self.sizes, strict=True)
        return torch.cat([rows[name].reshape(len(rows[name]), size) for name, size in sizes], dim=1)

    def unpack(self, flat_KP: Tensor) -> dict[str, Tensor]:
        """Return named views (K, ...) of the matrix; the backward pass of the split is one concatenation."""
        parts = flat_KP.split(self.sizes, dim=1)
        shapes = self.shapes.items()
        return {name: part.view(len(flat_KP), *shape) for (name, shape), part in zip(shapes, parts, strict=True)}


@dataclass
class Block:
    """The models of a block's clients in training: ``flat`` (R, P) and ``buffers`` (R, ...) change, ``held`` stay.

    ``held`` (R, ...) are parameters that the phase does not train and a client nevertheless has for its own.
    """

    clients: tuple[int, ...]
    state: ServerState
    phase: Phase
    layout: Layout
    flat: Tensor
    buffers: dict[str, Tensor]
    held: dict[str, Tensor]

    def params(self, leaf: Tensor) -> dict[str, Tensor]:
        """Return all parameters of the first rows, the trained ones from ``leaf``, a copy of their ``flat``."""
        own = {name: value[: len(leaf)] for name, value in (self.held | self.buffers).items()}
        return {**self.state.params, **own, **self.layout.unpack(leaf)}

    def by_client(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return views (K, M, ...) of tensors (R, ...), or (K, ...) where a client has one model."""
        if self.phase.models == 1:
            return dict(rows)
        models = self.phase.models
        return {name: value.unflatten(0, (len(value) // models, models)) for name, value in rows.items()}


class BlockTrainer:
    """Trains blocks of clients on this rank's device; holds what does not change between rounds."""

    def __init__(
        self,
        config: Config,
        model: StackedModel,
        algorithm: Algorithm,
        images: ImageSource,
        dataset: Dataset,
        parts: Sequence[np.ndarray],
    ) -> None:
        self.config = config
        self.task = task_of(dataset, config)
        self.model = model
        self.algorithm = algorithm
        self.images = images
        self.parts = parts
        self.own = OwnImages(config, self.task, model, images, dataset, parts)

    def train(
        self,
        clients: tuple[int, ...],
        weights: Tensor,
        state: ServerState,
        phase: Phase,
        client_states: list[dict[str, Tensor]],
    ) -> tuple[Update, Tensor]:
        """Train the clients from where the method begins; return their update and mean losses, float64 (K,).

        ``clients`` may be empty: the update then has the shapes of any other, with K = 0.
        """
        block = self._begin(clients, state, phase, client_states)
        keeps_optimizer = self.config.train.keep_optimizer
        kept = _kept_states(client_states, phase) if keeps_optimizer else []
        optimizer = StackedOptimizer(self.config.train, block.flat, kept)
        losses = torch.zeros(len(clients), dtype=torch.float64)
        passes = self._passes(phase)
        decided: Mapping[str, Tensor] = {}
        for name, train in passes:
            if phase.assess_on is not None and len(passes) > 1 and clients:
                decided = self.algorithm.assess(self._own_f1(block, phase.assess_on), decided)
            steps = plan_steps(self.parts, clients, train, self.config.seed, state.round + 1, name)
            losses += self._run_steps(block, optimizer, steps, name, decided) / len(passes)
        if keeps_optimizer:
            _keep_states(client_states, phase, optimizer)
        after = block.by_client(block.layout.unpack(block.flat) | block.buffers)
        return Update(state.round + 1, phase, clients, weights, state.params, after, client_states), losses

    def _begin(
        self, clients: tuple[int, ...], state: ServerState, phase: Phase, client_states: list[dict[str, Tensor]]
    ) -> Block:
        """Lay out the clients' models: the server's parameters but for what the method says they begin with."""
        specs = self.model.specs
        own = self.algorithm.begin(state, phase, client_states)
        rows = {name: value.flatten(0, 1) if phase.models > 1 else value for name, value in own.items()}
        trained = {name: spec.shape for name, spec in specs.items() if spec.kind in phase.kinds}
        num_rows = len(clients) * phase.models
        for name in trained.keys() - rows.keys():
            rows[name] = state.params[name].expand(num_rows, *trained[name])
        buffers = {name: rows[name].clone() for name in trained if specs[name].kind == "buffer"}
        layout = Layout({name: shape for name, shape in trained.items() if name not in buffers})
        held = {name: value for name, value in rows.items() if name not in trained}
        return Block(clients, state, phase, layout, layout.pack(rows), buffers, held)

    def _passes(self, phase: Phase) -> list[tuple[str, TrainConfig]]:
        """Return name and settings of the parts of a local training between which the method decides something."""
        train = self.config.train
        if phase.assess_on is None or train.epochs is None:
            return [(phase.name, train)]
        one = train.model_copy(update={"epochs": 1})
        return [(f"{phase.name}/{number}", one) for number in range(train.epochs)]

    def _own_f1(self, block: Block, split: str) -> Tensor:
        """Return the macro-F1 (K, M) of the block's models as they are, on the clients' own images."""
        params = block.params(block.flat)
        scores, labels = self.own.rows(split, block.clients, params, block.phase.models)
        return macro_f1(scores, labels).view(len(block.clients), block.phase.models)

    def _run_steps(
        self, block: Block, optimizer: StackedOptimizer, steps: Steps, name: str, decided: Mapping[str, Tensor]
    ) -> Tensor:
        """Take all steps of one part of the training, changing the block in place; return mean losses (K,)."""
        train, clients, phase, flat_RP = self.config.train, block.clients, block.phase, block.flat
        round = block.state.round + 1
        lr = learning_rate(train.lr, train.schedule, round, self.config.rounds)
        self.images.prepare([self.parts[client] for client in clients])
        index, weights = steps.index.to(flat_RP.device), steps.weights.to(flat_RP.device)
        losses = torch.zeros(len(clients), dtype=torch.float64, device=flat_RP.device)
        counts_SK = (steps.weights > 0).sum(2).T.tolist()
        # As wide as a full batch whatever the block holds, so that a client draws the same numbers in any company.
        shape = (index.shape[1], train.batch_size)
        draws = self.images.draw(clients, shape, self.config.seed, round, name)
        for step, (active, width) in enumerate(zip(steps.active, steps.widths, strict=True)):
            places = index[:active, step, :width]
            own_draws = None if draws is None else draws[:active, step, :width]
            fixed, targets = self.images.training_batch(places, own_draws)
            leaf = flat_RP[: active * phase.models].detach().requires_grad_()
            params = block.params(leaf)
            logits = self._scores(params, block, fixed, counts_SK[step][:active])
            stacked = {*block.layout.shapes, *block.buffers, *block.held}
            own = block.by_client({"": logits} | {name: params[name] for name in stacked})
            batch = Batch(
                own.pop(""),
                targets,
                weights[:active, step, :width],
                params | own,
                tuple(block.layout.shapes),
                block.state.params,
                phase.name,
                {key: value[:active] for key, value in decided.items()},
                self.task.loss,
            )
            loss_K = self.algorithm.loss(batch)
            (grad,) = torch.autograd.grad(loss_K.sum(), leaf)
            optimizer.step(flat_RP, grad, lr)
            losses[:active] += loss_K.detach()
        num_steps = (steps.weights > 0).any(2).sum(1)
        return losses.cpu() / num_steps

    def _scores(self, params: Mapping[str, Tensor], block: Block, fixed: Tensor, counts: list[int]) -> Tensor:
        """Return the model's outputs (R, B, ...); ``counts`` (K,): the clients' own batch sizes, B the largest of them.

        Where layers normalise over the batch, the places that a smaller batch leaves empty must not be seen, so
        clients with equal batch sizes go together. Running statistics that the phase freezes are used, not changed.
        """
        num_models = block.phase.models
        if num_models > 1:
            fixed = fixed.repeat_interleave(num_models, 0)
        buffers = [name for name, spec in self.model.specs.items() if spec.kind == "buffer"]
        training = "buffer" in block.phase.kinds
        if not self.model.mixes_images(training=training) or len(set(counts)) == 1:
            return self.model.forward(params, fixed, training=training)
        outputs = torch.empty(0)
        stacked = {*block.layout.shapes, *block.buffers, *block.held}
        for count in sorted(set(counts)):
            rows = [row for row in range(len(fixed)) if counts[row // num_models] == count]
            own = {name: value[rows] if name in stacked else value for name, value in params.items()}
            part = self.model.forward(own, fixed[rows, :count], training=training)
            if not len(outputs):
                outputs = part.new_zeros(*fixed.shape[:2], *part.shape[2:])
            outputs[rows, :count] = part
            for name in buffers:
                params[name][rows] = own[name]
        return outputs


def _optimizer_names(phase: Phase) -> list[str]:
    """The places of the optimiser states in a client's state, one for each of its models."""
    return [f"optimizer/{phase.name}/{model}/" for model in range(phase.models)]


def _kept_states(client_states: list[dict[str, Tensor]], phase: Phase) -> list[dict[str, Tensor]]:
    return [
        {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        for state in client_states
        for start in _optimizer_names(phase)
    ]


def _keep_states(client_states: list[dict[str, Tensor]], phase: Phase, optimizer: StackedOptimizer) -> None:
    places = [(state, start) for state in client_states for start in _optimizer_names(phase)]
    for (state, start), row in zip(places, optimizer.rows(), strict=True):
        state.update({start + name: value for name, value in row.items()})
