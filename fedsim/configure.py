"""From a file and ``key=value`` to a config: defaults < YAML < command line; unknown keys are errors.

The only file that knows both the config's words and the methods, whose own keys a run's config holds. ``python -m
fedsim.configure`` rewrites the schemas in configs/, from which editors complete and check.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedsim.algorithms import METHODS, resolve
from fedsim.catalogue.data import data_row, import_data
from fedsim.catalogue.functions import is_import_path
from fedsim.catalogue.models import import_model
from fedsim.config.data import DataConfig
from fedsim.config.distill import DistillConfig, distill_schema, load_distill_config
from fedsim.config.experiment import Config
from fedsim.config.mistakes import KeyedError, Mistake, mistakes, nearest, show
from fedsim.config.plain_yaml import SCHEMA_VERSION, apply_overrides, read_mapping, require_file
from fedsim.config.source import Source
from fedsim.config.words import AlgorithmConfig
from fedsim.errors import UserError
from fedsim.machine.files import write_json

CONFIGS = Path(__file__).parent.parent / "configs"


def load_config(path: Path | str, overrides: Sequence[str] = (), *, imports: bool = True) -> Config:
    """Read a YAML file, apply ``key=value`` overrides, fill in all defaults, the method's own included.

    Without ``imports`` nothing is imported that is named by its import path, and such a method's keys stay as they are.
    Raises UserError with one line: file or "command line", key, what was found, what is allowed.
    """
    data = read_mapping(Path(path))
    if "submodel" in data:
        raise UserError(str(path), "a distillation's config, with submodel", "a run's; launch.py distill takes it")
    source = Source(str(path), apply_overrides(data, overrides))
    try:
        config = Config.model_validate(copy.deepcopy(data))
    except ValidationError as error:
        source.refuse(mistakes(error, data, Config))
    source.check_paths(config.model, config.data)
    if config.clients.partition.name == "file":
        require_file(Path(config.clients.partition.path), source.where("clients.partition.path"))
    if config.clock is not None and config.clock.trace is not None:
        require_file(Path(config.clock.trace), source.where("clock.trace"))
    if imports:
        find_own(config, source)
    elif is_import_path(config.algorithm.name):
        return config
    return config.model_copy(update={"algorithm": _with_method_defaults(config, source)})


def load_data(path: Path, like: DataConfig) -> DataConfig:
    """Read the section data of a YAML file, which may hold nothing else: a set whose inputs are prepared as ``like``'s.

    Size, slices and tokens are those of ``like`` where the section leaves them out, and so is how files of the user's
    become square; UserError for other ones.
    """
    data, source = read_mapping(path).get("data"), Source(str(path), ())
    if not isinstance(data, dict):
        raise UserError(str(path), "no section data", "data: {name: ...}, a set with the run's classes")
    row = data_row(str(data.get("name")))
    keys = ("image_size", "slices", "max_tokens", *(("fit",) if row is not None and row.own_files else ()))
    prepared = {key: getattr(like, key) for key in keys}
    given = prepared | data
    try:
        words = DataConfig.model_validate(copy.deepcopy(given))
    except ValidationError as error:
        source.refuse([replace(one, key=f"data.{one.key}") for one in mistakes(error, given, DataConfig)])
    source.check_root(words)
    for key, value in prepared.items():
        if getattr(words, key) != value:
            raise UserError(f"{path}: data.{key}", show(getattr(words, key)), f"{show(value)}, as the run has it")
    return words


def own_names(config: Config | DistillConfig) -> dict[str, str]:
    """Return the import paths that a config names code by, by their keys."""
    names = {"data.name": config.data.name, "model.name": config.model.name}
    if isinstance(config, Config):
        names = {"algorithm.name": config.algorithm.name, **names}
    return {key: name for key, name in names.items() if is_import_path(name)}


def find_own(config: Config | DistillConfig, source: Source) -> None:
    """Import the functions of data and model that are named by their import paths; UserError for the first mistake."""
    finders = {"data.name": import_data, "model.name": import_model}
    for key, name in own_names(config).items():
        if key in finders:
            with source.naming(key):
                finders[key](name)


def _with_method_defaults(config: Config, source: Source) -> AlgorithmConfig:
    """Check the method's own keys with the method's own model, also beside ``train``, and fill in its defaults."""
    algorithm = config.algorithm
    if not is_import_path(algorithm.name) and algorithm.name not in METHODS:
        raise UserError(source.where("algorithm.name"), show(algorithm.name), nearest(algorithm.name, METHODS))
    with source.naming("algorithm.name"):
        model = resolve(algorithm.name).Config
    try:
        settings = model.model_validate(algorithm.settings, extra="forbid")
    except ValidationError as error:
        found = mistakes(error, algorithm.settings, model)
        source.refuse([Mistake(f"algorithm.{one.key}", one.found, one.expected) for one in found])
    try:
        settings.check_training(config.train)
    except KeyedError as error:
        source.refuse([Mistake(error.key, error.found, error.expected)])
    return AlgorithmConfig(name=algorithm.name, **settings.model_dump(mode="json"))


def load_distillation(path: Path, overrides: Sequence[str] = ()) -> DistillConfig:
    """Read a distillation's config as ``load_distill_config`` does, and find what it names by its import path."""
    config = load_distill_config(path, overrides)
    find_own(config, Source(str(path), [override.partition("=")[0] for override in overrides]))
    return config


def run_schema() -> dict[str, Any]:
    """JSON schema of a config file, each known method's own keys included."""
    whole = Config.model_json_schema()
    whole["$schema"] = SCHEMA_VERSION
    section = whole["$defs"]["AlgorithmConfig"]
    del section["additionalProperties"]
    section["properties"]["name"]["anyOf"] = [{"enum": list(METHODS)}, {"pattern": r"\."}]
    section["allOf"] = [_method_rule(name, resolve(name).Config, whole) for name in METHODS]
    return whole


def _method_rule(name: str, model: type[Any], whole: dict[str, Any]) -> dict[str, Any]:
    keys = model.model_json_schema()
    whole["$defs"].update(keys.pop("$defs", {}))
    rule = {"properties": {"name": True, **keys.get("properties", {})}, "additionalProperties": False}
    if "required" in keys:
        rule["required"] = keys["required"]
    return {"if": {"properties": {"name": {"const": name}}, "required": ["name"]}, "then": rule}


if __name__ == "__main__":
    write_json(CONFIGS / "schema.json", run_schema())
    write_json(CONFIGS / "schema_distill.json", distill_schema())
