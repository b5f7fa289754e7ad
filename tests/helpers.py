"""Small simulations on made-up images, through the same parts that ``launch.py run`` uses."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.algorithms import METHODS, resolve
from fedsim.algorithms.base import Algorithm, Batch, Facts, Payload, Phase, ServerState, Step, Tensors, Update
from fedsim.algorithms.parts.by_products import ByProducts
from fedsim.buffered import asynchronous
from fedsim.build import Parts, assemble
from fedsim.comm.group import open_group
from fedsim.config.data import DataConfig
from fedsim.config.experiment import Config
from fedsim.config.words import ModelConfig
from fedsim.data import ClientImages, Dataset, load_dataset
from fedsim.inputs.public import PublicInputs
from fedsim.inputs.texts import input_source
from fedsim.measure.costs import round_load
from fedsim.models.build import build_models
from fedsim.models.specs import ParamSpec
from fedsim.models.stacked import StackedModel
from fedsim.runfolder.records import RoundRecord
from fedsim.schedule.cohort import Cohort
from fedsim.server import run_round
from fedsim.simulation import Simulation
from fedsim.tasks.task import cross_entropy

IMAGE_SIZE = 14
SLICES = 3
LORA = {"r": 2, "lora_alpha": 4, "target": ["q", "k", "v"]}
TINY_VIT = {
    "name": "timm:vit_tiny_patch16_224",
    "weights": "random",
    "options": {"patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 2},
}
BASE: dict[str, Any] = {
    "name": "test",
    "seed": 5,
    "rounds": 3,
    "algorithm": {"name": "fedavg"},
    "model": {**TINY_VIT, "lora": LORA},
    "data": {"name": "digits", "image_size": IMAGE_SIZE},
    "clients": {"count": 1, "partition": {"name": "iid"}},
    "train": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "batch_size": 16},
}

#: The methods that send products in place of factors where the server may read sums alone.
BY_PRODUCTS = {name for name in METHODS if issubclass(resolve(name), ByProducts)}


def make_config(**sections: Any) -> Config:
    """``BASE`` with whole values replaced (rounds=2) or sections extended (train={"lr": 1.0})."""
    data = copy.deepcopy(BASE)
    for key, value in sections.items():
        extends = isinstance(value, Mapping) and isinstance(data.get(key), dict) and key not in ("algorithm", "model")
        data[key] = {**data[key], **value} if extends else value
    return Config.model_validate(data)


def make_dataset(sizes: Sequence[int], num_classes: int = 3, seed: int = 0) -> tuple[Dataset, list[np.ndarray]]:
    """Random images whose mean colour tells the class, and a client for each of ``sizes``."""
    stream = np.random.default_rng(seed)
    num_train, num_other = sum(sizes), 12
    labels = stream.integers(num_classes, size=num_train + 2 * num_other)
    pixels = stream.integers(0, 156, size=(len(labels), 3, IMAGE_SIZE, IMAGE_SIZE))
    pixels[np.arange(len(labels)), labels % 3] += 100
    train, val, test = np.split(np.arange(len(labels)), [num_train, num_train + num_other])
    names = tuple(f"class {number}" for number in range(num_classes))
    images, targets = torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels)
    dataset = Dataset("made up", images, targets, names, train, val, test, None, None, ())
    return dataset, np.split(stream.permutation(train), np.cumsum(sizes)[:-1])


def make_volumes(sizes: Sequence[int], slices: int = SLICES) -> tuple[Dataset, list[np.ndarray]]:
    """The made-up images, each with noisy copies beside it as the slices of a volume."""
    flat, parts = make_dataset(sizes)
    noise = np.random.default_rng(7).integers(0, 60, (len(flat.images), slices, 3, IMAGE_SIZE, IMAGE_SIZE))
    images = flat.images[:, None].long() + torch.from_numpy(noise)
    return replace(flat, images=images.clamp(max=255).byte()), parts


def make_masked_dataset(sizes: Sequence[int], side: int, seed: int = 0) -> tuple[Dataset, list[np.ndarray]]:
    """Noise with a bright rectangle in each image, which is the mask's class 1 or 2, and a client for each size.

    The last image of each split is background alone.
    """
    plain, parts = make_dataset(sizes, seed=seed)
    stream = np.random.default_rng(seed)
    pixels = stream.integers(0, 120, size=(len(plain.labels), 3, side, side))
    masks = np.zeros((len(plain.labels), side, side), np.uint8)
    empty = {split[-1] for split in (plain.train, plain.val, plain.test)}
    for mask, image in [pair for place, pair in enumerate(zip(masks, pixels, strict=True)) if place not in empty]:
        top, left = stream.integers(side // 2, size=2)
        label = stream.integers(1, 3)
        box = np.s_[top : top + side // 2, left : left + side // 3]
        mask[box], image[:, *box] = label, 120 + 50 * label
    images = torch.from_numpy(pixels.astype(np.uint8))
    names = ("background", "grey", "white")
    return replace(plain, images=images, class_names=names, masks=torch.from_numpy(masks)), parts


@cache
def shared_models(
    config_json: str, image_size: int, num_classes: int, slices: int | None = None
) -> tuple[StackedModel, StackedModel]:
    """A full model, and what clients hold of it; they keep nothing of a run, so simulations may share them."""
    config = ModelConfig.model_validate_json(config_json)
    names = [f"class {number}" for number in range(num_classes)]
    return build_models(config, image_size, names, 0, torch.device("cpu"), slices)


def make_simulation(
    config: Config,
    dataset: Dataset,
    parts: list[np.ndarray],
    model: StackedModel | None = None,
    held: StackedModel | None = None,
) -> Simulation:
    """A simulation of images and a partition from the caller, and perhaps models.

    A sub-model is aligned over the validation images.
    """
    if model is None:
        words = config.model.model_dump_json()
        model, held = shared_models(words, config.data.image_size, len(dataset.class_names), dataset.num_slices)
    public = PublicInputs(input_source(config, dataset, model), dataset.val)
    return assemble(config, open_group(), Parts(dataset, ClientImages.of(parts), model, held or model, public))


def with_method(sim: Simulation, method: type[Algorithm]) -> Simulation:
    """The same simulation with another method, which has the first one's settings."""
    sim.trainer.method = method(sim.algorithm.config, sim.algorithm.facts)
    return replace(sim, algorithm=sim.trainer.method)


def simulate(sizes: Sequence[int], per_block: int, **sections: Any) -> Simulation:
    """A simulation of clients with so many images each."""
    dataset, parts = make_dataset(sizes)
    sections["clients"] = {"count": len(sizes), **sections.get("clients", {}), "per_block": per_block}
    return make_simulation(make_config(**sections), dataset, parts)


def play(sim: Simulation, num_rounds: int, state: ServerState | None = None) -> tuple[ServerState, list[RoundRecord]]:
    """Run rounds from the initial state, or from ``state``."""
    state = state or sim.initial_state()
    records = []
    log: Any = SimpleNamespace(progress=str, message=str)
    sim.clock.start(sim.clock.hands, lambda: round_load(sim))
    take_round = asynchronous(sim) if sim.config.is_asynchronous else run_round
    for _ in range(num_rounds):
        records.append(RoundRecord(sim, state.round + 1))
        state = take_round(sim, state, records[-1], log)
        records[-1].row |= sim.clock.row
    return state, records


def everything(sim: Simulation, state: ServerState) -> dict[str, Tensor]:
    """All that a run holds: the server's tensors, and the clients' as ``client/name``."""
    kept = {f"{c}/{name}": value for c in sim.store.sizes() for name, value in sim.store.read(c).items()}
    return {**state.params, **state.extra, **kept}


def record_phases(sim: Simulation) -> list[dict[str, Any]]:
    """Note, from now on, per phase of a run what each client trained and what the server made of it.

    A phase's entry: ``after``: {client: its parameters}, ``server``: the parameters after aggregation.
    """
    phases: list[dict[str, Any]] = [{"after": {}}]
    method = sim.algorithm
    pre: Callable[[Update], Payload] = method.pre_aggregate
    post: Callable[..., ServerState] = method.post_aggregate

    def pre_aggregate(update: Update) -> Payload:
        for row, client in enumerate(update.clients):
            phases[-1]["after"][client] = {name: value[row].clone() for name, value in update.after.items()}
        return pre(update)

    def post_aggregate(state: ServerState, aggregate: Any) -> ServerState:
        state = post(state, aggregate)
        phases[-1]["server"] = state.params
        phases.append({"after": {}})
        return state

    vars(method).update(pre_aggregate=pre_aggregate, post_aggregate=post_aggregate)
    return phases


def train_alone(sim: Simulation, client: int, state: ServerState, phase: Phase | None = None) -> Update:
    """Train one client for one phase."""
    phase = phase or sim.algorithm.phases(state.round + 1)[0]
    return sim.trainer.train((client,), cohort_of(client), state, phase, [{}])[0]


def facts_of(specs: Mapping[str, ParamSpec], num_rounds: int = 1, num_clients: int = 2) -> Facts:
    """What a method is told of a run with these parameters."""
    return Facts(specs, num_rounds, num_clients, make_config().train, float(num_clients))


def step_of(**words: Any) -> dict[str, Any]:
    """What a step consists of, for two clients with an image each, but for what is given."""
    step = Step(
        phase=Phase(),
        targets=torch.zeros(2, 1, dtype=torch.int64),
        weights=torch.ones(2, 1),
        trained=(),
        start={},
        context={},
        number=0,
        lr=0.1,
        chance=torch.zeros(2, dtype=torch.float64),
    )
    return {**vars(step), **words}


def batch_of(logits: Tensor, **words: Any) -> Batch:
    """A batch with these logits, all else as in ``step_of``."""
    words = {"params": {}, "features": logits, "features_of": lambda _: logits, "criterion": cross_entropy, **words}
    return Batch(**step_of(**words), logits=logits)


def update_of(clients: Sequence[int], before: Tensors, after: Tensors, **words: Any) -> Update:
    """What clients bring back after one step each, with equal weights, but for what is given."""
    usual = {
        "round": 1,
        "phase": Phase(),
        "cohort": tuple(clients),
        "weights": cohort_of(*clients).weights,
        "context": {},
        "kept": [{} for _ in clients],
        "num_steps": torch.ones(len(clients), dtype=torch.int64),
        "lr": 0.1,
        "momentum": 0.0,
    }
    return Update(**{**usual, **words}, clients=tuple(clients), before=before, after=after)


def cohort_of(*clients: int) -> Cohort:
    """Some clients, each with the same weight."""
    return Cohort(clients, torch.full((len(clients),), 1 / max(1, len(clients)), dtype=torch.float64))


def furthest(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest ||found - expected|| / ||expected|| over all tensors, and whose it is."""
    assert found.keys() == expected.keys()
    distances = []
    for name, value in expected.items():
        error, size = ((t.double()).norm().item() for t in (found[name].double() - value.double(), value))
        distances.append((error / size if size > 0 else error, name))
    return max(distances)


def same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def with_params(state: ServerState, params: Mapping[str, Tensor]) -> ServerState:
    return replace(state, params={**state.params, **params})


def load_set(name: str, **changes: Any) -> Any:
    """The data set of a config's section ``data``."""
    return load_dataset(DataConfig.model_validate({"name": name, **changes}))


def class_counts(dataset: Any, part: str) -> list[int]:
    """Images per class in train, val or test."""
    labels = dataset.labels.numpy()[getattr(dataset, part)]
    return np.bincount(labels, minlength=len(dataset.class_names)).tolist()  # type: ignore[no-any-return]  # numpy says Any
