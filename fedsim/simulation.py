"""Everything that a run holds beside the server's state, built from the config the same way on every rank."""

import math
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from torch import Tensor

from algorithms import Algorithm, resolve
from algorithms.base import ServerState
from comm import Group
from fedsim.arithmetic import set_arithmetic
from fedsim.blocks import choose_block_size
from fedsim.client import BlockTrainer
from fedsim.cohort import Cohort, num_local_steps
from fedsim.config import Config, StoreConfig
from fedsim.config_words import PIXEL_MODELS
from fedsim.data import Dataset, load_dataset, partition_clients, without_small
from fedsim.errors import UserError
from fedsim.evaluate import evaluation_rows
from fedsim.images import ImageSource
from fedsim.memory import keep_freed_memory
from fedsim.models.held import build_models
from fedsim.models.stacked import StackedModel
from fedsim.public import PublicInputs, load_public
from fedsim.store import GIB, Budget, ClientStore
from fedsim.tasks import Classification, Task, task_of
from fedsim.texts import input_source

Seconds = deque[float]


def recent_seconds() -> Seconds:
    """Room for so many measurements that a single one, or a checkpoint now and then, does not count."""
    return deque(maxlen=9)


@dataclass
class Simulation:
    """The parts of a run. ``parts``: each client's training images, as indices into the data set.

    ``model`` is the server's, which is measured and exported; clients hold ``held``. ``public``: what a sub-model is
    aligned over, where the method does that.
    """

    config: Config
    group: Group
    dataset: Dataset
    parts: list[np.ndarray]
    model: StackedModel
    algorithm: Algorithm
    images: ImageSource
    trainer: BlockTrainer
    store: ClientStore
    per_block: int
    public: PublicInputs | None = None
    # Seconds of the last phases, whose medians steer the schedule only: each client's per local step, ...
    step_seconds: dict[int, Seconds] = field(default_factory=lambda: defaultdict(recent_seconds))
    # ... and every rank's from the ranks' last meeting to its training.
    busy_seconds: dict[int, Seconds] = field(default_factory=lambda: defaultdict(recent_seconds))

    @property
    def held(self) -> StackedModel:
        """What clients train: a sub-model, which shares all but what is cut with ``model``; without one, ``model``."""
        return self.trainer.model

    @property
    def task(self) -> Task:
        """What the data set's images are for."""
        return self.trainer.task

    @property
    def sizes(self) -> list[int]:
        """Number of training images per client."""
        return [len(part) for part in self.parts]

    @property
    def held_out(self) -> Mapping[str, list[np.ndarray]]:
        """Each client's own validation and test images: ``{"val": [...], "test": [...]}``, indices like ``parts``."""
        return self.trainer.own.held_out

    def expected_seconds(self, cohort: Cohort, blocks: Sequence[range]) -> list[float]:
        """Return how long training each block should take; in steps before the first measurement."""
        known = {client: median(self.step_seconds[client]) for client in cohort.clients if client in self.step_seconds}
        usual = fmean(known.values()) if known else 1.0
        seconds = [self._steps(client) * known.get(client, usual) for client in cohort.clients]
        return [sum(seconds[block.start : block.stop]) for block in blocks]

    def expected_busy(self) -> list[float]:
        """Return how long every rank should be busy before it trains, the server with its records."""
        return [median(self.busy_seconds[rank] or [0.0]) for rank in range(self.group.num_ranks)]

    def remember_seconds(self, cohort: Cohort, seconds_K: Tensor, busy: Sequence[float]) -> None:
        """Take the measured seconds of a phase, the same on every rank: of its clients and of the ranks before it."""
        for rank, seconds in enumerate(busy):
            self.busy_seconds[rank].append(seconds)
        for client, seconds in zip(cohort.clients, seconds_K.tolist(), strict=True):
            self.step_seconds[client].append(seconds / self._steps(client))

    def _steps(self, client: int) -> int:
        return num_local_steps(self.config.train, len(self.parts[client]))

    @property
    def clients_receive(self) -> bool:
        """Whether clients take anything from an aggregate; their states stay where they are if not."""
        return type(self.algorithm).receive is not Algorithm.receive

    def initial_state(self) -> ServerState:
        """Return the server's state before the first round."""
        params = self.held.initial(self.config.seed)
        return ServerState(0, params, self.algorithm.init_server(params))

    def evaluate(self, params: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        """Return the metrics of the validation and the test images, the same on every rank."""
        metrics = {}
        for split, places in (("val", self.dataset.val), ("test", self.dataset.test)):
            size = self.config.evaluate.batch_size
            rows = evaluation_rows(self.task, self.model, params, self.images, places, size, self.group)
            metrics[split] = self.task.measure(rows, self.dataset.labels[torch.from_numpy(places)])
        return metrics


def check_outputs(config: Config, model: StackedModel, dataset: Dataset) -> None:
    """UserError where the network scores images and the data set has masks, or the other way round."""
    if model.encoder.per_pixel != (dataset.masks is not None):
        found = f"{config.model.name} with {dataset.name}, which has {'no ' if dataset.masks is None else ''}masks"
        expected = ", ".join(PIXEL_MODELS) if dataset.masks is not None else "a network that scores images"
        raise UserError("model.name", found, expected)


def check_batches(config: Config, model: StackedModel, parts: Sequence[np.ndarray]) -> None:
    """UserError where a client would train on a batch of one image and the network's BatchNorm cannot."""
    size = config.train.batch_size
    lone = [client for client, part in enumerate(parts) if len(part) > 0 and (len(part) % size == 1 or size == 1)]
    if lone and config.model.train == "all" and model.normalises_over_batch(config.data.image_size):
        raise UserError(
            "train.batch_size",
            f"{size}, which leaves client {lone[0]} with its {len(parts[lone[0]])} images a batch of one",
            f"batches of two images or more, over which {config.model.name} normalises; "
            "clients.min_samples leaves small clients out",
        )


def build_simulation(
    config: Config, group: Group, per_block: int | None = None, scratch: Path | None = None
) -> Simulation:
    """Load data and model, divide the images among the clients, and set up the method.

    ``per_block``: the block size that a resumed run has settled on. The simulation's config names the one in use.
    ``scratch``: a folder for the states of clients that the config's budget keeps out of memory; without it
    all of them stay there.
    """
    set_arithmetic(config.model.precision, config.deterministic, group.device)
    keep_freed_memory()
    dataset = load_dataset(config.data)
    task_of(dataset, config).check_decisive(config.evaluate.best_by, dataset)
    parts = without_small(partition_clients(dataset, config.clients, config.seed), config.clients.min_samples)
    model, held = build_models(config.model, config.data.image_size, dataset.class_names, config.seed, group.device)
    check_outputs(config, model, dataset)
    check_batches(config, model, parts)
    method = resolve(config.algorithm.name)
    algorithm = method(method.Config(**config.algorithm.settings), held.specs, config.rounds)
    images = input_source(config, dataset, model)
    if per_block is None:
        num_models = max(phase.models for phase in algorithm.phases(1))
        per_block = choose_block_size(config, images.num_elements * num_models, held.num_layers, group.device)
    clients = config.clients.model_copy(update={"per_block": per_block})
    config = config.model_copy(update={"clients": clients})
    trainer = BlockTrainer(config, held, algorithm, images, dataset, parts)
    for phase in algorithm.phases(1):
        if phase.assess_on is not None and not isinstance(trainer.task, Classification):
            found = f"{config.algorithm.name}, which compares class scores, with {dataset.name}"
            raise UserError("algorithm.name", found, "a set of classes, or another method")
        if phase.assess_on is not None and (config.train.epochs or 1) > 1:
            trainer.own.require(phase.assess_on)
    for split in ("val", "test") if config.evaluate.clients else ():
        trainer.own.places(split)  # refuses a partition's file that does not say whose they are
    create = algorithm.init_client if keeps_states(config, algorithm) else None
    store = ClientStore(group, create, state_budget(config.store, group.device, scratch))
    aligns = any(algorithm.aligns_after(round) for round in range(1, config.rounds + 1))
    public = load_public(config.model.submodel, model) if aligns else None
    return Simulation(config, group, dataset, parts, model, algorithm, images, trainer, store, per_block, public)


def state_budget(config: StoreConfig, device: torch.device, scratch: Path | None) -> Budget:
    """Return how many bytes of clients' states rest where."""
    on_host = math.inf if config.host_gib is None or scratch is None else config.host_gib * GIB
    # A CPU's memory is the host's, so there only the host's limit counts.
    on_device = 0.0 if device.type == "cpu" else config.device_gib * GIB
    return Budget(on_device, on_host, scratch)


def keeps_states(config: Config, algorithm: Algorithm) -> bool:
    """Whether anything of a client outlives the round."""
    return algorithm.keeps_client_state or config.train.keep_optimizer
