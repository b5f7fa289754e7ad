"""From a config to a simulation: read data and models, then put the parts together. Tests bring parts of their own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms import resolve
from fedsim.algorithms.base import Algorithm, Facts
from fedsim.algorithms.parts.abilities import Aligning, Assessing
from fedsim.catalogue.models import MODELS
from fedsim.client import BlockTrainer
from fedsim.comm.group import Group
from fedsim.config.experiment import Config, with_block_size, with_noise
from fedsim.config.privacy import RecordLevel
from fedsim.config.train import StoreConfig
from fedsim.config.words import LoraConfig
from fedsim.data import ClientImages, Dataset, load_dataset, partition_clients, without_small
from fedsim.data.splits import at_most
from fedsim.errors import UserError
from fedsim.inputs.public import PublicInputs, load_public
from fedsim.inputs.texts import input_source
from fedsim.machine.arithmetic import set_arithmetic
from fedsim.machine.memory import keep_freed_memory, own_pages
from fedsim.method_checks import check_names
from fedsim.models.build import build_models
from fedsim.models.encoders import Encoder
from fedsim.models.stacked import StackedModel
from fedsim.models.whole_net import WholeNet
from fedsim.privacy.choose import expected_clients, privacy_layers
from fedsim.privacy.layer import Layer
from fedsim.privacy.refusals import check_claims
from fedsim.schedule.block_size import choose_block_size
from fedsim.schedule.buffer import open_clock
from fedsim.schedule.client_ranks import client_ranks
from fedsim.schedule.pace import Pace
from fedsim.simulation import Simulation
from fedsim.storage.store import GIB, Budget, ClientStore
from fedsim.tasks.choose import task_of
from fedsim.tasks.task import Classification, Task

if TYPE_CHECKING:
    from fedsim.privacy.ledger import Ledger

Progress = Callable[[str], object]


@dataclass(frozen=True)
class Parts:
    """What is read before a run: images, who has which of them, and the server's and the clients' models."""

    dataset: Dataset
    clients: ClientImages
    server_model: StackedModel
    client_model: StackedModel
    public: PublicInputs | None = None

    def with_shifts(self) -> "Parts":
        """Return the same parts with parameters for what the server adds to the frozen weights."""
        server = self.server_model.with_shifts()
        client = server if self.client_model is self.server_model else self.client_model.with_shifts()
        return replace(self, server_model=server, client_model=client)


def build_simulation(config: Config, group: Group, scratch: Path | None = None, progress: Progress = str) -> Simulation:
    """Load the parts that a config names and put them together, see ``assemble``."""
    set_arithmetic(config.model.precision, config.deterministic, group.device)
    keep_freed_memory()
    parts = load_parts(config, group.device)
    check_own_code(group, parts.dataset, parts.server_model.encoder)
    sim = assemble(config, group, parts, scratch, progress=progress)
    if sim.ledger is not None:
        group.check_equal("the noise multiplier", repr(sim.ledger.multiplier))
    return sim


def load_parts(config: Config, device: torch.device) -> Parts:
    """Read the data set, divide it among the clients, and load the models; UserError for what does not fit."""
    with own_pages():  # which what only reading takes gives back
        dataset = load_dataset(config.data)
        # Before some of the validation is left out: a file may name any of it.
        clients = without_small(partition_clients(dataset, config.clients, config.seed), config.clients.min_samples)
        val = at_most(config.evaluate.max_val, dataset.val, dataset.labels.numpy(), config.seed, "evaluate.max_val")
        dataset = replace(dataset, val=val)
        task_of(dataset, config).check_decisive(config.evaluate.best_by, dataset)
    size, names = config.data.image_size, dataset.class_names
    server_model, client_model = build_models(config.model, size, names, config.seed, device, dataset.num_slices)
    check_outputs(config, server_model, dataset)
    check_batches(config, server_model, clients)
    return Parts(dataset, clients, server_model, client_model)


def check_own_code(group: Group, dataset: Dataset, encoder: Encoder) -> None:
    """RuntimeError where the user's own function gave the ranks different data or weights. Every rank calls this."""
    if dataset.arrays is not None:
        group.check_equal(f"the data of {dataset.name}", dataset.arrays["sha256"])
    if encoder.sha256 is not None:
        group.check_equal("the network of model.name", encoder.sha256)


def assemble(
    config: Config,
    group: Group,
    parts: Parts,
    scratch: Path | None = None,
    layers: Sequence[Layer] = (),
    progress: Progress = str,
) -> Simulation:
    """Put a simulation together.

    The simulation's config is the one that counts: it says what ``config`` leaves open.
    ``scratch``: a folder for the states of clients that the config's budget keeps out of memory; without it
    all of them stay there. ``layers``: what wraps the method beside the config's privacy, nearer to the method.
    ``progress`` is told of what takes its time.
    """
    # The method is told what there is, and refuses a model that has not what it is about.
    if resolve(config.algorithm.name).shifts_base:
        if config.model.lora is not None and config.model.lora.use_dora:
            found = f"true with algorithm.name: {config.algorithm.name}, which changes the frozen weights"
            raise UserError("model.lora.use_dora", found, "false, or another method")
        parts = parts.with_shifts()
    algorithm = make_algorithm(config, parts)
    check_lora(config, algorithm)
    if config.clients.max_diverged and algorithm.reads_alone is not None:
        found = f"{config.clients.max_diverged:g}, and {config.algorithm.name} reads {algorithm.reads_alone}"
        raise UserError("clients.max_diverged", found, "0: the client that is read might be left out")

    # What is spent of privacy is known before anything is trained, and with it how much noise there is.
    sizes = parts.clients.sizes
    ledger = open_ledger(config, algorithm, sizes, progress)
    config = config if ledger is None else with_noise(config, ledger.multiplier)

    # The block size depends on the config and the data, so that no result depends on the ranks.
    images = input_source(config, parts.dataset, parts.server_model)
    num_models = max(phase.models for phase in algorithm.phases(1))
    num_elements, num_layers = images.num_elements * num_models, parts.client_model.num_layers
    config = with_block_size(config, choose_block_size(config, sizes, num_elements, num_layers, group.device))

    # What trains blocks, and what clients keep between rounds.
    task = task_of(parts.dataset, config)
    trainer = BlockTrainer(config, task, parts.client_model, algorithm, images, parts.dataset, parts.clients)
    check_own_images(config, algorithm, task, trainer)
    keeps = bool(algorithm.keeps) or config.train.keep_optimizer
    store = ClientStore(group, new_state if keeps else None, state_budget(config.store, group.device, scratch))

    # What the server aligns the clients' sub-model over.
    public = parts.public
    if public is None and isinstance(algorithm, Aligning):
        rounds = range(1, config.rounds + 1)
        is_aligned = any(algorithm.aligns_after(round) for round in rounds)
        public = load_public(config.model.submodel, parts.server_model) if is_aligned else None
    return Simulation(
        config=config,
        group=group,
        dataset=parts.dataset,
        parts=parts.clients,
        task=task,
        model=parts.server_model,
        held=parts.client_model,
        algorithm=algorithm,
        layers=[*layers, *privacy_layers(config, algorithm.facts, sizes)],
        ledger=ledger,
        images=images,
        trainer=trainer,
        store=store,
        pace=Pace(config.train, sizes, group.num_ranks),
        clock=open_clock(config, sizes),
        public=public,
    )


def open_ledger(config: Config, algorithm: Algorithm, sizes: Sequence[int], progress: Progress) -> "Ledger | None":
    """Return the ledger of a config with a privacy mechanism; UserError for a claim that cannot hold."""
    check_claims(config, sizes)
    if config.privacy is None or config.privacy.mechanism is None:
        return None
    # Late: it brings dp-accounting, which takes most of a second.
    from fedsim.privacy.facts import check_messages, public_facts
    from fedsim.privacy.ledger import Ledger

    if not isinstance(config.privacy.mechanism, RecordLevel):
        check_messages(config, algorithm)
    return Ledger(config, public_facts(config, algorithm, sizes), progress)


def make_algorithm(config: Config, parts: Parts) -> Algorithm:
    """Make the method; UserError where the model has not what it is about."""
    method = resolve(config.algorithm.name)
    sizes = parts.clients.sizes
    lora = config.model.lora
    ranks = client_ranks(lora, sizes, config.seed)
    facts = Facts(
        specs=parts.client_model.specs,
        num_rounds=config.rounds,
        num_clients=len(sizes),
        train=config.train,
        clients_per_round=expected_clients(config.clients, sizes),
        seed=config.seed,
        sums_alone=config.privacy is not None and config.privacy.sums_alone,
        ranks=ranks,
        scales=scales_of_clients(lora, ranks) if lora and ranks else None,
    )
    algorithm = method(method.Config(**config.algorithm.settings), facts)
    check_names(algorithm)
    return algorithm


def check_lora(config: Config, algorithm: Algorithm) -> None:
    """UserError for keys of ``model.lora`` that the method would take for something else."""
    name, lora = config.algorithm.name, config.model.lora
    if lora is None:
        return
    init = lora.init_lora_weights
    if algorithm.remakes_factors and init not in (True, "gaussian"):
        found = f"{init} with {name}, which {algorithm.remakes_factors}"
        raise UserError("model.lora.init_lora_weights", found, "true or gaussian, which begin with B at zero")
    if algorithm.has_own_scale and lora.use_rslora:
        raise UserError("model.lora.use_rslora", f"true with {name}, whose update has a scale of its own", "false")


def scales_of_clients(lora: LoraConfig, ranks: Sequence[int]) -> tuple[float, ...]:
    """Return each client's scale of its products of factors beside the server's, one number for all of a rank."""
    by_rank = {rank: lora.scaling(rank) / lora.scaling(lora.r) for rank in set(ranks)}
    return tuple(by_rank[rank] for rank in ranks)


def new_state(client: int) -> dict[str, Tensor]:
    """Return what a client keeps before its first round."""
    del client
    return {}


def check_own_images(config: Config, algorithm: Algorithm, task: Task, trainer: BlockTrainer) -> None:
    """UserError where a client has no images of its own for what is measured on them."""
    if isinstance(algorithm, Assessing):
        if not isinstance(task, Classification):
            found = f"{config.algorithm.name}, which compares class scores, with {config.data.name}"
            raise UserError("algorithm.name", found, "a set of classes, or another method")
        if (config.train.epochs or 1) > 1:
            trainer.own.require(algorithm.assess_on)
    for split in ("val", "test") if config.evaluate.clients else ():
        trainer.own.places(split)  # refuses a partition's file that does not say whose they are


def check_outputs(config: Config, model: StackedModel, dataset: Dataset) -> None:
    """UserError where the network scores images and the data set has masks, or the other way round."""
    if model.encoder.scores_pixels != (dataset.masks is not None):
        found = f"{config.model.name} with {dataset.name}, which has {'no ' if dataset.masks is None else ''}masks"
        pixels = ", ".join(row.name for row in MODELS.values() if row.per_pixel)
        if dataset.masks is not None:
            raise UserError("model.name", found, f"{pixels}; or model.decoder on a vision transformer")
        key = "model.name" if model.decoder is None else "model.decoder"
        raise UserError(key, found, "a network that scores images")


def check_batches(config: Config, model: StackedModel, parts: Sequence[np.ndarray]) -> None:
    """UserError where a client would train on a batch of one image and the network's BatchNorm cannot."""
    size, sizes = config.train.batch_size, np.asarray(ClientImages.of(parts).sizes)
    lone = np.flatnonzero((sizes > 0) & ((sizes % size == 1) | (size == 1)))
    if len(lone) and isinstance(model, WholeNet) and model.normalises_over_batch(config.data.image_size):
        raise UserError(
            "train.batch_size",
            f"{size}, which leaves client {lone[0]} with its {sizes[lone[0]]} images a batch of one",
            f"batches of two images or more, over which {config.model.name} normalises; "
            "clients.min_samples leaves small clients out",
        )


def state_budget(config: StoreConfig, device: torch.device, scratch: Path | None) -> Budget:
    """Return how many bytes of clients' states rest where."""
    on_host = math.inf if config.host_gib is None or scratch is None else config.host_gib * GIB
    # A CPU's memory is the host's, so there only the host's limit counts.
    on_device = 0.0 if device.type == "cpu" else config.device_gib * GIB
    return Budget(on_device, on_host, scratch)
