"""Local training of a block of clients as one batch.

All clients of a block go through one forward and one backward pass. The gradient of the sum of their losses is,
row by row, each client's own gradient, since no client's loss contains another's parameters. Clients stand in
the order of their number of steps, so that those still training are always the first rows.

Shapes: K clients in a block, M models of a client, R = K M rows, client by client, S local steps, B images per
step, P trained parameters of one model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from algorithms.base import Algorithm, Batch, Phase, ServerState, Update
from fedsim.block import Block, StepInputs
from fedsim.config import Config, TrainConfig
from fedsim.data import Dataset
from fedsim.images import ImageSource
from fedsim.layout import Layout
from fedsim.method_checks import check_agreement, check_loss, check_params
from fedsim.models.ragged import ragged_features
from fedsim.models.specs import NUM_TOKENS
from fedsim.models.stacked import Counting, StackedModel
from fedsim.optim import StackedOptimizer, learning_rate
from fedsim.own import OwnImages, macro_f1
from fedsim.steps import Steps, plan_steps
from fedsim.tasks import task_of


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
        #: How far the first step's gradient was from those of its clients one by one, see ``check_agreement``.
        self.agreement: float | None = None

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
        specs, num_clients = self.model.specs, len(clients)
        begun = self.algorithm.begin(state, phase, client_states)
        axes = [(num_clients,), (num_clients, phase.models)] if phase.models > 1 else [(num_clients,)]
        check_params(self.algorithm, "begin", begun, specs, axes)
        rows = self._by_row(begun)
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
            if self.agreement is None and active > 1:
                self.agreement = self._agreement(block, inputs)
            loss_K, grad = self._direction(block, flat_RP[: active * phase.models], inputs)
            optimizer.step(flat_RP, grad, lr)
            losses[:active] += loss_K
        return losses.cpu()

    def _agreement(self, block: Block, inputs: StepInputs) -> float:
        """Compare a first step's gradient with those of its clients one by one, see ``check_agreement``."""
        num_rows = len(inputs.counts) * block.phase.models
        together = replace(block, buffers={name: value.clone() for name, value in block.buffers.items()})
        _, stacked = self._direction(together, block.flat[:num_rows], inputs)
        alone = [
            self._direction(one, one.flat, inputs.row(client))[1]
            for client, one in enumerate(map(block.row, range(len(inputs.counts))))
        ]
        num_clients, precision = len(inputs.counts), self.config.model.precision
        alone_KP = torch.cat(alone).reshape(num_clients, -1)
        return check_agreement(self.algorithm, stacked.reshape(num_clients, -1), alone_KP, precision)

    def _direction(self, block: Block, at: Tensor, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """Return the losses (K,) and the gradient (R, P) of a step from ``at`` (R, P)."""
        loss_K, grad = self._gradient(block, at, inputs)
        rise = self._rise(block, at, grad)
        if rise is not None:
            # The step is taken from where the weights are, with the gradient at where they were moved.
            _, grad = self._gradient(block, at + rise, inputs, again=True)
        return loss_K, grad

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
        own = block.by_client({name: params[name] for name in block.own_names})
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
        check_loss(self.algorithm, loss_K, len(inputs.counts))
        (grad,) = torch.autograd.grad(loss_K.sum(), leaf)
        return loss_K.detach(), grad

    def _rise(self, block: Block, at: Tensor, grad: Tensor) -> Tensor | None:
        """Return how far the method moves the trained parameters (R, P) before a second gradient; None for nowhere."""
        if type(self.algorithm).ascend is Algorithm.ascend:
            return None
        params, grads = (block.by_client(block.layout.unpack(flat)) for flat in (at, grad))
        rise = self.algorithm.ascend(params, grads)
        shapes = [tuple(value.shape[: value.dim() - len(self.model.specs[n].shape)]) for n, value in params.items()]
        check_params(self.algorithm, "ascend", rise, self.model.specs, shapes[:1])
        return block.layout.pack(self._by_row(rise)) if rise else None

    def _features(self, params: Mapping[str, Tensor], block: Block, inputs: StepInputs) -> Tensor:
        """Return what the classifier sees, (R, B, ...); running statistics that the phase freezes are not changed."""
        num_models = block.phase.models
        fixed = inputs.fixed.repeat_interleave(num_models, 0) if num_models > 1 else inputs.fixed
        counting = None
        if NUM_TOKENS in block.buffers:
            filled = (inputs.weights > 0).repeat_interleave(num_models, 0)
            counting = Counting(filled, block.phase.counts_padding)
        sizes = [count for count in inputs.counts for _ in range(num_models)]
        training = "buffer" in block.phase.kinds
        return ragged_features(self.model, params, block.own_names, fixed, sizes, training=training, counting=counting)

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
