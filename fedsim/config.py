"""Typed configuration of a run: defaults < YAML < key=value on the command line; unknown keys are errors.

``python -m fedsim.config`` rewrites configs/schema.json, from which editors complete and check, and that of a
distillation.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

from pydantic import Field, ValidationError, model_validator

from fedsim.config_data import ClientsConfig, DataConfig, FractionsConfig, PartitionConfig
from fedsim.config_errors import KeyedError, Mistake, mistakes, nearest, show
from fedsim.config_train import CheckpointConfig, EvaluateConfig, ScheduleConfig, StoreConfig, TrainConfig
from fedsim.config_words import AlgorithmConfig, AmplitudeNormConfig, Count, LoraConfig, ModelConfig, Name, Seed, Words
from fedsim.config_yaml import COMMAND_LINE, apply_overrides, read_mapping, require_file, to_yaml
from fedsim.errors import UserError
from fedsim.files import write_json

__all__ = [
    "AlgorithmConfig",
    "AmplitudeNormConfig",
    "CheckpointConfig",
    "ClientsConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "FractionsConfig",
    "LoraConfig",
    "ModelConfig",
    "PartitionConfig",
    "ScheduleConfig",
    "StoreConfig",
    "TrainConfig",
    "Words",
    "dump_config",
    "load_config",
    "schema",
]
SCHEMA_VERSION = "https://json-schema.org/draft/2020-12/schema"
SCHEMA_FILE = Path(__file__).parent.parent / "configs" / "schema.json"


class Config(Words):
    """A whole experiment."""

    name: Name = Field(description="Name of the run and of its folder: letters, digits, dot, underscore, hyphen.")
    seed: Seed = Field(default=0, description="Every random draw of the run follows from it.")
    rounds: Count = Field(description="Communication rounds.")
    algorithm: AlgorithmConfig = Field(default=AlgorithmConfig(), description="The method and its own keys.")
    model: ModelConfig = Field(description="Encoder, LoRA, classifier.")
    data: DataConfig = Field(description="Images, split, augmentation.")
    clients: ClientsConfig = Field(description="Number, sampling and partition of the clients.")
    train: TrainConfig = Field(description="Local training.")
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), description="Evaluation and early stop.")
    deterministic: bool = Field(
        default=True, description="Whether a GPU uses only kernels that give the same bits every time."
    )
    privacy: None = Field(default=None, description="No privacy mechanism; nothing else is known here yet.")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="Saving the state.")
    store: StoreConfig = Field(default=StoreConfig(), description="Memory for what clients keep between rounds.")

    @model_validator(mode="after")
    def _sites_to_truncate(self) -> Self:
        name = self.clients.partition.name
        if self.data.truncate_to_smallest and name != "sites":
            raise KeyedError("data.truncate_to_smallest", f"true with clients.partition.name: {name}", "sites there")
        return self


def load_config(path: Path | str, overrides: Sequence[str] = (), *, imports: bool = True) -> Config:
    """Read a YAML file, apply ``key=value`` overrides, fill in all defaults, the method's own included.

    Without ``imports`` the keys of a method that is named by its import path stay as they are: nothing is imported.
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
    if "." in config.algorithm.name and not imports:
        return config
    return config.model_copy(update={"algorithm": _with_method_defaults(config, source)})


class Source:
    """Where the keys of a config came from, to name the right place in an error."""

    def __init__(self, file: str, overridden: Sequence[str]) -> None:
        self.file = file
        self.overridden = overridden

    def where(self, key: str) -> str:
        """``FILE: key`` or ``command line: key``."""
        pairs = [(f"{key}.", f"{typed}.") for typed in self.overridden]
        is_typed = any(mine.startswith(typed) or typed.startswith(mine) for mine, typed in pairs)
        return f"{COMMAND_LINE if is_typed else self.file}: {key}"

    def refuse(self, found: Sequence[Mistake]) -> NoReturn:
        """Raise UserError for the first mistake, with the number of the others."""
        first = found[0]
        expected = first.expected
        section = first.key.rpartition(".")[0]
        if f"{section}.name" in self.overridden and self.where(first.key).startswith(self.file):
            expected += f"; or replace the section as a whole: {section}='{{name: ...}}'"
        if len(found) > 1:
            expected += f" (and {len(found) - 1} more)"
        raise UserError(self.where(first.key), first.found, expected)

    def check_paths(self, model: ModelConfig, data: DataConfig) -> None:
        """UserError for the first file or folder named in these sections that does not exist."""
        if str(model.weights).endswith(".safetensors"):
            require_file(Path(str(model.weights)), self.where("model.weights"))
        if data.root is not None:
            require_file(Path(data.root), self.where("data.root"), folder=True)
        if model.submodel is not None and model.submodel.folder is not None:
            require_file(Path(model.submodel.folder), self.where("model.submodel.folder"), folder=True)


def _with_method_defaults(config: Config, source: Source) -> AlgorithmConfig:
    """Check the method's own keys with the method's own model, also beside ``train``, and fill in its defaults."""
    import algorithms  # late: the methods bring torch, which a mistake above should not wait for

    algorithm, where = config.algorithm, source.where("algorithm.name")
    if "." not in algorithm.name and algorithm.name not in algorithms.METHODS:
        raise UserError(where, show(algorithm.name), nearest(algorithm.name, algorithms.METHODS))
    try:
        model = algorithms.resolve(algorithm.name).Config
    except UserError as error:
        raise UserError(where, error.found, error.expected) from None
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


def dump_config(config: Words) -> str:
    """The fully resolved config as YAML; ``load_config`` reads it back to an equal ``Config``."""
    return to_yaml(config.model_dump(mode="json"))


def schema() -> dict[str, Any]:
    """JSON schema of a config file, each known method's own keys included."""
    import algorithms

    whole = Config.model_json_schema()
    whole["$schema"] = SCHEMA_VERSION
    section = whole["$defs"]["AlgorithmConfig"]
    del section["additionalProperties"]
    section["properties"]["name"]["anyOf"] = [{"enum": list(algorithms.METHODS)}, {"pattern": r"\."}]
    section["allOf"] = [_method_rule(name, algorithms.resolve(name).Config, whole) for name in algorithms.METHODS]
    return whole


def _method_rule(name: str, model: type[Any], whole: dict[str, Any]) -> dict[str, Any]:
    keys = model.model_json_schema()
    whole["$defs"].update(keys.pop("$defs", {}))
    rule = {"properties": {"name": True, **keys.get("properties", {})}, "additionalProperties": False}
    if "required" in keys:
        rule["required"] = keys["required"]
    return {"if": {"properties": {"name": {"const": name}}, "required": ["name"]}, "then": rule}


if __name__ == "__main__":
    from fedsim import config_distill

    write_json(SCHEMA_FILE, schema())
    write_json(config_distill.SCHEMA_FILE, config_distill.schema())
