"""Local training of a block of clients as one batch.

All clients of a block go through one forward and one backward pass. The gradient of the sum of their losses is,
row by row, each client's own gradient, since no client's loss contains another's parameters. Clients stand in
the order of their number of steps, so that those still training are always the first rows.

Shapes: K clients in a block, M models of a client, R = K M rows, client by client, S local steps, B images per
step, P trained parameters of one model.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms.base import Algorithm, Batch, Phase, ServerState, Step, Tensors, Update
from fedsim.algorithms.parts.abilities import ASSESSED, Assessing
from fedsim.config.experiment import Config
from fedsim.config.train import TrainConfig
from fedsim.data import ClientImages, Dataset
from fedsim.inputs.images import ImageSource
from fedsim.method_checks import check_agreement, check_gradient, check_loss, check_start, refuse
from fedsim.models.specs import NUM_TOKENS, RANK
from fedsim.models.stacked import Counting, StackedModel
from fedsim.schedule.cohort import Cohort
from fedsim.tasks.task import Task
from fedsim.training.block import Block, StepInputs, rows_of
from fedsim.training.flat import Layout
from fedsim.training.optim import StackedOptimizer, keep_moments, kept_moments, learning_rate
from fedsim.training.own_images import OwnImages, macro_f1
from fedsim.training.own_ranks import OwnRanks
from fedsim.training.record_level import RecordNoise, private_records
from fedsim.training.steps import Steps, plan_steps


class BlockTrainer:
    """Trains blocks of clients on this rank's device; holds what does not change between rounds."""

    def __init__(
        self,
        config: Config,
        task: Task,
        model: StackedModel,
        method: Algorithm,
        images: ImageSource,
        dataset: Dataset,
        parts: ClientImages,
    ) -> None:
        self.config = config
        self.task = task
        self.model = model
        self.method = method
        self.images = images
        self.parts = parts
        self.own = OwnImages(config, self.task, model, images, dataset, parts)
        self.ranks = OwnRanks(method.facts)
        #: What protects single images; None where nothing does.
        self.records = private_records(config, model, method, parts.sizes)
        #: How far the first step's gradient was from those of its clients one by one, see ``check_agreement``.
        self.agreement: float | None = None

    def train(
        self,
        clients: tuple[int, ...],
        cohort: Cohort,
        state: ServerState,
        phase: Phase,
        kept: list[dict[str, Tensor]],
    ) -> tuple[Update, Tensor]:
        """Train some clients of a cohort from where the method begins; return update and mean losses, float64 (K,).

        ``clients`` may be empty: the update then has the shapes of any other, with K = 0.
        """
        block = self._begin(clients, state, phase, kept)
        keeps_optimizer = self.config.train.keep_optimizer
        moments = kept_moments(kept, phase) if keeps_optimizer else []
        optimizer = StackedOptimizer(self.config.train, block.flat, moments, block.beyond)
        losses = torch.zeros(len(clients), dtype=torch.float64)
        num_steps = torch.zeros(len(clients), dtype=torch.int64)
        passes = self._passes(phase)
        assessed: Tensors = {}
        for name, train in passes:
            if isinstance(self.method, Assessing) and len(passes) > 1 and clients:
                assessed = self.method.assess(self._own_f1(block, self.method.assess_on), assessed)
                block = replace(block, context={**block.context, ASSESSED: assessed})
            poisson = self.records is not None
            steps = plan_steps(self.parts, clients, train, self.config.seed, state.round + 1, name, poisson=poisson)
            losses += self._run_steps(block, optimizer, steps, name)
            num_steps += steps.num_steps
        if keeps_optimizer:
            keep_moments(kept, phase, optimizer)
        after = block.layout.unpack(block.flat) | block.buffers
        update = Update(
            round=state.round + 1,
            phase=phase,
            clients=clients,
            cohort=cohort.clients,
            weights=cohort.weights_of(clients),
            before=state.params,
            after=block.by_client({name: value.contiguous() for name, value in after.items()}),
            context=block.context,
            kept=kept,
            num_steps=num_steps,
            lr=self._learning_rate(state),
            momentum=self.config.train.momentum,
        )
        return update, losses / num_steps

    def _begin(
        self, clients: tuple[int, ...], state: ServerState, phase: Phase, kept: list[dict[str, Tensor]]
    ) -> Block:
        """Lay out the clients' models: the server's parameters but for what the method says they begin with."""
        specs = self.model.specs
        start = self.method.begin(state, phase, kept)
        check_start(self.method, start, specs, len(clients), phase.models)
        rows = self._by_row(start.params)
        trained = {name: spec.shape for name, spec in specs.items() if spec.kind in phase.kinds}
        num_rows = len(clients) * phase.models
        for name in trained.keys() - rows.keys():
            rows[name] = state.params[name].expand(num_rows, *trained[name])
        buffers = {name: rows[name].clone() for name in trained if specs[name].kind in ("buffer", "count")}
        layout = Layout({name: shape for name, shape in trained.items() if name not in buffers})
        beyond = None
        if self.ranks.differ:
            rows = self.ranks.own(clients, {**state.params, **rows}, phase.models)
            beyond = self.ranks.beyond(rows[RANK], layout)
        fixed = {name: value for name, value in rows.items() if name not in trained}
        return Block(clients, state, phase, layout, layout.pack(rows), buffers, fixed, start.context, beyond)

    def _by_row(self, by_client: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors (K, M, ...) as (R, ...); others stay."""
        axes = {name: value.dim() - len(self.model.specs[name].shape) for name, value in by_client.items()}
        return {name: value.flatten(0, 1) if axes[name] == 2 else value for name, value in by_client.items()}

    def _passes(self, phase: Phase) -> list[tuple[str, TrainConfig]]:
        """Return name and settings of the parts of a local training between which the method decides something."""
        train = self.config.train
        if not isinstance(self.method, Assessing) or train.epochs is None:
            return [(phase.name, train)]
        one = train.model_copy(update={"epochs": 1})
        return [(f"{phase.name}/{number}", one) for number in range(train.epochs)]

    def _own_f1(self, block: Block, split: str) -> Tensor:
        """Return the macro-F1 (K, M) of the block's models as they are, on the clients' own images."""
        params = block.params(block.layout.unpack(block.flat), len(block.flat))
        scores, labels = self.own.rows(split, block.clients, params, block.phase.models)
        return macro_f1(scores, labels).view(len(block.clients), block.phase.models)

    def _learning_rate(self, state: ServerState) -> float:
        train = self.config.train
        return learning_rate(train.lr, train.schedule, state.round + 1, self.config.rounds)

    def _run_steps(self, block: Block, optimizer: StackedOptimizer, steps: Steps, name: str) -> Tensor:
        """Take all steps of one part of the training, changing the block in place; return summed losses (K,)."""
        clients, phase, flat_RP = block.clients, block.phase, block.flat
        lr = self._learning_rate(block.state)
        self.images.prepare([self.parts[client] for client in clients])
        index, weights = steps.index.to(flat_RP.device), steps.weights.to(flat_RP.device)
        losses = torch.zeros(len(clients), dtype=torch.float64, device=flat_RP.device)
        counts_SK = (steps.weights > 0).sum(2).T.tolist()
        round, noise = block.state.round + 1, None
        # As wide as a full batch whatever the block holds, so that a client draws the same numbers in any company.
        places = np.ones((*index.shape[:2], self.config.train.batch_size), dtype=bool)
        if self.records is not None:
            places = (steps.weights > 0).numpy()
            noise = self.records.noise(clients, round, name)
        draws = self.images.draw(clients, places, self.config.seed, round, name)
        room: list[Tensor] = []
        for number, (active, width) in enumerate(zip(steps.active, steps.widths, strict=True)):
            own_draws = None if draws is None else draws[:active, number, :width]
            fixed, targets = self.images.training_batch(index[:active, number, :width], own_draws)
            step = Step(
                phase=phase,
                targets=targets,
                weights=weights[:active, number, :width],
                trained=tuple(block.layout.shapes),
                start=block.state.params,
                context=rows_of(block.context, slice(active)),
                number=number,
                lr=lr,
                chance=steps.chances[:active, number].to(flat_RP.device),
            )
            inputs = StepInputs(fixed, counts_SK[number][:active], step)
            if self.agreement is None and active > 1:
                self.agreement = self._agreement(block, inputs)
            loss_K, grad, still = self._gradient(block, flat_RP[: active * phase.models], inputs, room, noise)
            optimizer.step(flat_RP, grad, lr, still)
            losses[:active] += loss_K
        return losses.cpu()

    def _agreement(self, block: Block, inputs: StepInputs) -> float:
        """Compare a first step's gradient with those of its clients one by one, see ``check_agreement``."""
        num_clients = len(inputs.counts)
        together = replace(block, buffers={name: value.clone() for name, value in block.buffers.items()})
        stacked = self._gradient(together, block.flat[: num_clients * block.phase.models], inputs, [])[1]
        singles = [(block.row(client), inputs.row(client)) for client in range(num_clients)]
        alone_KP = torch.stack([self._gradient(one, one.flat, own, [])[1].flatten() for one, own in singles])
        precision = self.config.model.precision
        return check_agreement(self.method, stacked.reshape(num_clients, -1), alone_KP, precision)

    def _gradient(
        self, block: Block, at: Tensor, inputs: StepInputs, room: list[Tensor], noise: RecordNoise | None = None
    ) -> tuple[Tensor, Tensor, list[slice]]:
        """Return the losses (K,) at trained parameters ``at`` (R, P), the gradient (R, P) there, and where is none.

        ``room``: where gradients lie from step to step, the largest step first; memory taken anew has a price.
        """
        losses: list[Tensor] = []
        flat: list[Tensor] = []
        answers: list[Tensors] = []

        def gradient_at(place: Tensor) -> Tensor:
            if len(room) == len(losses):
                room.append(torch.empty_like(at))
            # Of a second gradient on the same images only statistics inside the network may know.
            loss_K, grad = self._loss_gradient(block, place, inputs, bool(losses), room[len(losses)][: len(at)])
            losses.append(loss_K)
            return grad if noise is None else noise.add_to(grad)

        if getattr(self.method.gradient, "__func__", None) is Algorithm.gradient:
            grad = gradient_at(at)
            return losses[0], grad, []

        def grad_of(params: Tensors) -> Tensors:
            if answers and self.records is not None:
                refuse(self.method, "gradient", "a second call of grad_of", "one: each is a release of the images")
            flat.append(gradient_at(at if params is start else block.layout.pack(self._by_row(params))))
            answers.append(block.by_client(block.layout.unpack(flat[-1])))
            return answers[-1]

        start = block.by_client(block.layout.unpack(at))
        found = self.method.gradient(start, grad_of, inputs.step)
        check_gradient(self.method, found, answers)
        unchanged = [grad for grad, answer in zip(flat, answers, strict=True) if answer is found]
        if unchanged:
            return losses[0], unchanged[0], []
        still = [name for name, value in found.items() if value is None]
        whole = {name: torch.zeros_like(answers[0][name]) if v is None else v for name, v in found.items()}
        return losses[0], block.layout.pack(self._by_row(whole)), block.layout.columns(still)

    def _loss_gradient(
        self, block: Block, at: Tensor, inputs: StepInputs, again: bool, out: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the method's losses (K,) and their gradient (R, P) for trained parameters ``at`` (R, P).

        ``again``: for the second time on the same images. ``out``: where the gradient is to lie.
        """
        trained = {name: value.requires_grad_() for name, value in block.layout.unpack(at.detach()).items()}
        params = block.params(trained, len(at))
        if again:
            params = self.model.with_fixed_amplitude(params)
        tape = None
        if self.records is None:
            features = self._features(params, block, inputs)
        else:
            features, tape = self.records.features(block.clients, params, inputs.fixed, inputs.counts)
        logits = self.model.classify(params, features)
        own = block.by_client({name: params[name] for name in block.own_names})
        seen = block.by_client({"features": features, "logits": logits})
        batch = Batch(
            **vars(inputs.step),
            logits=seen["logits"],
            features=seen["features"],
            params=params | own,
            features_of=lambda other: self._features_of(other, block, inputs),
            criterion=self.task.loss,
        )
        loss_K = self.method.loss(batch)
        check_loss(self.method, loss_K, len(inputs.counts))
        if self.records is not None and tape is not None:
            return loss_K.detach(), self.records.gradient(block, trained, batch, loss_K, tape)
        grads = torch.autograd.grad(loss_K.sum(), list(trained.values()), materialize_grads=True)
        return loss_K.detach(), block.layout.pack(dict(zip(trained, grads, strict=True)), out)

    def _features(self, params: Mapping[str, Tensor], block: Block, inputs: StepInputs) -> Tensor:
        """Return what the classifier sees, (R, B, ...); running statistics that the phase freezes are not changed."""
        num_models = block.phase.models
        fixed = inputs.fixed.repeat_interleave(num_models, 0) if num_models > 1 else inputs.fixed
        counting = None
        if NUM_TOKENS in block.buffers:
            filled = (inputs.step.weights > 0).repeat_interleave(num_models, 0)
            counting = Counting(filled, block.phase.counts_padding)
        sizes = [count for count in inputs.counts for _ in range(num_models)]
        training = "buffer" in block.phase.kinds
        return self.model.features(params, fixed, training=training, sizes=sizes, counting=counting)

    def _features_of(self, params: Mapping[str, Tensor], block: Block, inputs: StepInputs) -> Tensor:
        """Return what the classifier of other models sees at a step, see ``Batch.features_of``."""
        num_models = block.phase.models
        fixed = inputs.fixed.repeat_interleave(num_models, 0)
        rows = self.ranks.given(block.clients[: len(inputs.counts)], self._by_row(params), num_models)
        with torch.no_grad():
            return block.by_client({"": self.model.features(rows, fixed, training=False)})[""]
