"""Local training of a block of clients as one batch.

All clients of a block go through one forward and one backward pass. The gradient of the sum of their losses is,
row by row, each client's own gradient, since no client's loss contains another's parameters. Clients stand in
the order of their number of steps, so that those still training are always the first rows.

Shapes: K clients in a block, M models of a client, R = K M rows, client by client, S local steps, B images per
step, P trained parameters of one model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from algorithms.base import Algorithm, Batch, Phase, ServerState, Update
from fedsim.config import Config, TrainConfig
from fedsim.data import Dataset
from fedsim.images import ImageSource
from fedsim.layout import Layout
from fedsim.models.specs import NUM_TOKENS
from fedsim.models.stacked import Counting, StackedModel
from fedsim.optim import StackedOptimizer, learning_rate
from fedsim.own import OwnImages, macro_f1
from fedsim.steps import Steps, plan_steps
from fedsim.tasks import task_of


@dataclass
class Block:
    """The models of a block's clients in training: ``flat`` (R, P) and ``buffers`` (R, ...) change, ``held`` stay.

    Running statistics and counts are ``buffers``. ``held`` (R, ...) are parameters that the phase does not train and a
    client nevertheless has for its own.
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


@dataclass(frozen=True)
class StepInputs:
    """What the first clients of a block have in front of them at one step.

    ``fixed`` (K, B, ...): the images' prefixes; ``targets`` (K, B, ...); ``weights`` (K, B); ``counts`` (K,): the
    clients' own batch sizes, B the largest of them; ``decided`` (K, ...); ``states``: what the clients keep.
    """

    fixed: Tensor
    targets: Tensor
    weights: Tensor
    counts: list[int]
    decided: Mapping[str, Tensor]
    states: Sequence[Mapping[str, Tensor]]


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
        num_steps = torch.zeros(len(clients), dtype=torch.int64)
        passes = self._passes(phase)
        decided: Mapping[str, Tensor] = {}
        for name, train in passes:
            if phase.assess_on is not None and len(passes) > 1 and clients:
                decided = self.algorithm.assess(self._own_f1(block, phase.assess_on), decided)
            steps = plan_steps(self.parts, clients, train, self.config.seed, state.round + 1, name)
            losses += self._run_steps(block, optimizer, steps, name, decided, client_states)
            num_steps += (steps.weights > 0).any(2).sum(1)
        if keeps_optimizer:
            _keep_states(client_states, phase, optimizer)
        after = block.by_client(block.layout.unpack(block.flat) | block.buffers)
        momentum = self.config.train.momentum
        update = Update(
            state.round + 1, phase, clients, weights, state.params, after, client_states, num_steps, momentum
        )
        return update, losses / num_steps

    def _begin(
        self, clients: tuple[int, ...], state: ServerState, phase: Phase, client_states: list[dict[str, Tensor]]
    ) -> Block:
        """Lay out the clients' models: the server's parameters but for what the method says they begin with."""
        specs = self.model.specs
        rows = self._by_row(self.algorithm.begin(state, phase, client_states))
        trained = {name: spec.shape for name, spec in specs.items() if spec.kind in phase.kinds}
        num_rows = len(clients) * phase.models
        for name in trained.keys() - rows.keys():
            rows[name] = state.params[name].expand(num_rows, *trained[name])
        buffers = {name: rows[name].clone() for name in trained if specs[name].kind in ("buffer", "count")}
        layout = Layout({name: shape for name, shape in trained.items() if name not in buffers})
        held = {name: value for name, value in rows.items() if name not in trained}
        return Block(clients, state, phase, layout, layout.pack(rows), buffers, held)

    def _by_row(self, by_client: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors (K, M, ...) as (R, ...); others stay."""
        axes = {name: value.dim() - len(self.model.specs[name].shape) for name, value in by_client.items()}
        return {name: value.flatten(0, 1) if axes[name] == 2 else value for name, value in by_client.items()}

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
        self,
        block: Block,
        optimizer: StackedOptimizer,
        steps: Steps,
        name: str,
        decided: Mapping[str, Tensor],
        states: Sequence[Mapping[str, Tensor]],
    ) -> Tensor:
        """Take all steps of one part of the training, changing the block in place; return summed losses (K,)."""
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
            inputs = StepInputs(
                *self.images.training_batch(places, own_draws),
                weights[:active, step, :width],
                counts_SK[step][:active],
                {key: value[:active] for key, value in decided.items()},
                states[:active],
            )
            at = flat_RP[: active * phase.models]
            loss_K, grad = self._gradient(block, at, inputs)
            rise = self._rise(block, at, grad)
            if rise is not None:
                # The step is taken from where the weights are, with the gradient at where they were moved.
                _, grad = self._gradient(block, at + rise, inputs, again=True)
            optimizer.step(flat_RP, grad, lr)
            losses[:active] += loss_K
        return losses.cpu()

    def _gradient(self, block: Block, at: Tensor, inputs: StepInputs, again: bool = False) -> tuple[Tensor, Tensor]:
        """Return the method's losses (K,) and their gradient (R, P) for trained parameters ``at`` (R, P).

        ``again``: for the second time on the same images, so that only statistics inside the network follow them.
        """
        leaf = at.detach().requires_grad_()
        params = block.params(leaf)
        if again:
            params = self.model.with_fixed_amplitude(params)
        features = self._features(params, block, inputs)
        logits = self.model.classify(params, features)
        stacked = {*block.layout.shapes, *block.buffers, *block.held}
        own = block.by_client({name: params[name] for name in stacked})
        seen = block.by_client({"features": features, "logits": logits})
        batch = Batch(
            seen["logits"],
            inputs.targets,
            inputs.weights,
            params | own,
            tuple(block.layout.shapes),
            block.state.params,
            block.phase.name,
            inputs.decided,
            self.task.loss,
            inputs.states,
            seen["features"],
            lambda other: self._features_of(other, block, inputs),
        )
        loss_K = self.algorithm.loss(batch)
        (grad,) = torch.autograd.grad(loss_K.sum(), leaf)
        return loss_K.detach(), grad

    def _rise(self, block: Block, at: Tensor, grad: Tensor) -> Tensor | None:
        """Return how far the method moves the trained parameters (R, P) before a second gradient; None for nowhere."""
        if type(self.algorithm).ascend is Algorithm.ascend:
            return None
        params, grads = (block.by_client(block.layout.unpack(flat)) for flat in (at, grad))
        rise = self.algorithm.ascend(params, grads)
        return block.layout.pack(self._by_row(rise)) if rise else None

    def _features(self, params: Mapping[str, Tensor], block: Block, inputs: StepInputs) -> Tensor:
        """Return what the classifier sees, (R, B, ...).

        What normalises over the batch must not see the places that a smaller batch leaves empty, so clients with
        equal batch sizes go together. Running statistics that the phase freezes are used, not changed; its counts grow.
        """
        num_models, counts = block.phase.models, inputs.counts
        fixed = inputs.fixed.repeat_interleave(num_models, 0) if num_models > 1 else inputs.fixed
        counting = None
        if NUM_TOKENS in block.buffers:
            filled = (inputs.weights > 0).repeat_interleave(num_models, 0)
            counting = Counting(filled, block.phase.counts_padding)
        training = "buffer" in block.phase.kinds
        if len(set(counts)) == 1 or not self.model.mixes_images(training=training):
            return self.model.features(params, fixed, training=training, counting=counting)
        stacked = {*block.layout.shapes, *block.buffers, *block.held}
        groups = []
        for count in sorted(set(counts)):
            rows = [row for row in range(len(fixed)) if counts[row // num_models] == count]
            own = {name: value[rows] if name in stacked else value for name, value in params.items()}
            some = counting and replace(counting, places=counting.places[rows, :count])
            groups.append((rows, self.model.features(own, fixed[rows, :count], training=training, counting=some)))
            for name in block.buffers:
                params[name][rows] = own[name]
        first = groups[0][1]
        features = first.new_zeros(*fixed.shape[:2], *first.shape[2:])
        for rows, part in groups:
            features[rows, : part.shape[1]] = part
        return features

    def _features_of(self, params: Mapping[str, Tensor], block: Block, inputs: StepInputs) -> Tensor:
        """Return what the classifier of other models sees at a step, see ``Batch.features_of``."""
        num_models = block.phase.models
        fixed = inputs.fixed.repeat_interleave(num_models, 0)
        with torch.no_grad():
            features = self.model.features(self._by_row(params), fixed, training=False)
        return block.by_client({"": features})[""]


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
