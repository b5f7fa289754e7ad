"""The state that a run begins with: its model's first parameters, or those that another run has ended with."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsim.algorithms.base import ServerState
from fedsim.algorithms.parts.abilities import Choosing
from fedsim.config.experiment import Config
from fedsim.config.mistakes import show
from fedsim.configure import own_names
from fedsim.errors import UserError, reading
from fedsim.machine.arithmetic import set_arithmetic
from fedsim.machine.files import naming_files, parse_json
from fedsim.models.lora_start import TAKEN
from fedsim.models.outside.adapters import CONFIG, factors_of
from fedsim.models.tuned_tower import TunedTower
from fedsim.models.weights import in_float32, read_weights
from fedsim.runfolder.adapter import base_of, inputs_of
from fedsim.runfolder.environment import FROZEN, require_frozen
from fedsim.runfolder.saved import SavedModel, saved_model
from fedsim.runfolder.trust import load_recorded
from fedsim.simulation import Simulation

WHERE = "model.start_from"
#: What of the model's section may differ: the parameters mean the same.
FREE = {"start_from", "precision"}


def first_state(sim: Simulation) -> ServerState:
    """Return the server's state before the first round; every rank calls this.

    With ``model.start_from`` the parameters are those of that run's best round, or an adapter's; all else, such as what
    the method or the clients keep, is new. UserError for a run of another model, or of other classes, and for one that
    names code which this run does not.
    """
    state = sim.initial_state()
    if sim.config.model.start_from is None:
        return state
    folder = Path(sim.config.model.start_from)
    if sim.algorithm.remakes_factors is not None:
        found = f"{folder} with {sim.config.algorithm.name}, which {sim.algorithm.remakes_factors}"
        raise UserError(WHERE, found, "null, or another method")
    if (folder / CONFIG).is_file():
        return replace(state, params={**state.params, **of_adapter(sim, folder)})
    recorded = load_recorded(folder / "config.yaml", known=own_names(sim.config).values())
    check_same_model(sim.config, recorded, folder)
    with naming_files(folder):
        other = saved_model(folder, recorded, "best", sim.group)
    # The other run's arithmetic was set for it.
    set_arithmetic(sim.config.model.precision, sim.config.deterministic, sim.group.device)
    check_same_classes(sim, other, folder)
    if isinstance(other.sim.algorithm, Choosing):
        expected = f"one of a method with a single model: its best {other.sim.algorithm.chosen} lacks the others"
        raise UserError(WHERE, f"{folder}, a run with {recorded.algorithm.name}", expected)
    theirs = other.sim.model.encoder.frozen_sha256  # of a network of the user's it may follow the seed
    require_frozen([{FROZEN: theirs}], sim.model.encoder, folder)
    return replace(state, params=taken(state.params, other.params, sim, folder))


def of_adapter(sim: Simulation, folder: Path) -> dict[str, Tensor]:
    """Return the factors of an adapter, and its classifier if it has one. UserError where they do not fit."""
    if not isinstance(sim.held, TunedTower):
        raise UserError(
            WHERE,
            f"{folder}, an adapter",
            "the folder of a run; adapters fit runs with model.lora on a plain transformer",
        )
    if (init := sim.held.lora.init_lora_weights) in TAKEN:
        beside = f"{folder}, an adapter, whose weights lack nothing, with model.lora.init_lora_weights: {init}"
        raise UserError(WHERE, beside, "true, gaussian or orthogonal")
    device = sim.group.device
    found = {name: value.to(device) for name, value in factors_of(folder, sim.held, WHERE).items()}
    file = folder / "head.safetensors"
    head = in_float32(read_weights(file, WHERE)) if file.is_file() else {}
    specs = sim.held.specs
    for name, value in head.items():
        own = f"head.{name}" if f"head.{name}" in specs else name
        if own in specs and specs[own].shape != tuple(value.shape):
            raise UserError(WHERE, f"{file} with {name} {tuple(value.shape)}", f"{specs[own].shape}")
        if own in specs:
            found[own] = value.to(device)
    for file in (folder / "about.json", folder / "card.json"):
        if file.is_file():
            _check_about(sim, folder, file)
    return found


def _check_about(sim: Simulation, folder: Path, file: Path) -> None:
    """UserError where an adapter's ``file`` says that it is for other classes, images or frozen weights."""
    with reading(str(file), "a JSON object with class_names, inputs and the model's name"):
        about = parse_json(file.read_text("utf-8"))
        names, size = tuple(about["class_names"]), about["inputs"].get("size")
        theirs = {"model": about.get("model", about.get("network")), **about, "size": size}
    if names != sim.dataset.class_names:
        shown = ", ".join(sim.dataset.class_names)
        raise UserError(WHERE, f"{folder}, of the classes {', '.join(map(str, names))}", shown)
    require_frozen([about], sim.model.encoder, file)
    mine = {"model": sim.config.model.name, **base_of(sim), "size": inputs_of(sim).get("size")}
    mine[FROZEN] = sim.model.encoder.frozen_sha256
    # Weights of one digest are the same under any name.
    for key in ("size", FROZEN, *(() if mine[FROZEN] else ("model", "weights", "seed"))):
        if key in theirs and theirs[key] != mine.get(key):
            expected = f"{show(mine.get(key))}, as here"
            raise UserError(WHERE, f"{folder}, an adapter for {key} {show(theirs[key])}", expected)


def check_same_model(config: Config, recorded: Config, folder: Path) -> None:
    """UserError naming the first key in which the models differ."""
    mine, other = (model_words(one) for one in (config, recorded))
    for key in mine:
        if mine[key] != other[key]:
            found = f"{folder}, a run with {key}: {show(other[key])}"
            raise UserError(WHERE, found, f"one with {key}: {show(mine[key])}, as here")


def model_words(config: Config) -> dict[str, Any]:
    """The words that decide what parameters mean, by their keys; a random network's frozen weights follow the seed."""
    model = config.model.model_dump(mode="json", exclude=FREE)
    words = {f"model.{key}": value for key, value in model.items()} | {"data.image_size": config.data.image_size}
    is_drawn = config.model.weights == "random" and config.model.train != "all"
    return words | ({"seed": config.seed} if is_drawn else {})


def check_same_classes(sim: Simulation, other: SavedModel, folder: Path) -> None:
    """UserError where the classifiers tell other classes apart."""
    mine, before = sim.dataset.class_names, other.sim.dataset.class_names
    if mine != before:
        raise UserError(WHERE, f"{folder}, a run on the classes {', '.join(before)}", ", ".join(mine))


def taken(
    params: Mapping[str, Tensor], given: Mapping[str, Tensor], sim: Simulation, folder: Path
) -> dict[str, Tensor]:
    """Return the other run's parameters, and of what only a server that changes frozen weights has, zeros."""
    specs = sim.held.specs
    found = {}
    for name, value in params.items():
        if name not in given and specs[name].kind not in ("shift", "proxy", "count"):
            raise UserError(WHERE, f"{folder}, a run without {name}", "one that has all that this run trains")
        found[name] = given.get(name, value).to(value).clone()
    for name in given.keys() - params.keys():
        raise UserError(WHERE, f"{folder}, a run with {name}, which this one has not", "a method that keeps it")
    return found
