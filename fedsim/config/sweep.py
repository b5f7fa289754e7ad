"""Words of a sweep's file: one config, and what is changed of it from run to run."""

import copy
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from fedsim.config.base import Seed, Text, Words
from fedsim.config.mistakes import KeyedError, mistakes
from fedsim.config.plain_yaml import read_mapping
from fedsim.config.source import Source

Values = Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]
Grid = dict[str, Values]
Seeds = Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)]


class TuneConfig(Words):
    """Settings that are chosen for every contender by validation, on seeds that no cell has."""

    seeds: Seeds = Field(description="Seeds of the trials.")
    grid: Grid = Field(default={}, description="Values to try of each key, by its dotted name.")
    methods: dict[str, Grid] = Field(
        default={}, description="A grid for single methods in place of grid; of as many trials as the others'."
    )

    by: Annotated[str, Field(pattern=r"^clients\..+$")] | None = Field(
        default=None,
        description="What chooses, such as clients.f1: the mean validation of the clients' own models, which "
        "evaluate.clients measures; null: the model of all, by evaluate.best_by.",
    )

    @model_validator(mode="after")
    def _something_to_try(self) -> Self:
        if not self.grid and not self.methods:
            raise KeyedError("grid", "nothing", "a list of values for at least one key")
        return self


class SweepConfig(Words):
    """A sweep. Its cells are all entries of ``list``, each with all combinations of ``grid``."""

    base: Text = Field(description="The config that the cells change, as a path from the folder of this file.")
    list: Annotated[tuple[dict[str, Any], ...], Field(strict=False, min_length=1)] = Field(
        default=({},),
        description="Changes by dotted keys, such as {algorithm.name: deer, train.lr: 0.001}; name: how the cell is "
        "called, where its values make no good name.",
    )
    grid: Grid = Field(default={}, description="Values of each key; the cells have all combinations.")
    per: Annotated[tuple[Text, ...], Field(strict=False)] = Field(
        default=(), description="Keys with a table of their own for each value: what is compared is alike in them."
    )
    tune: TuneConfig | None = Field(default=None, description="Choosing settings for every contender; null: none.")

    @model_validator(mode="after")
    def _each_key_once(self) -> Self:
        varied = {key for entry in self.list for key in entry} | self.grid.keys()
        for entry in self.list:
            for key in entry.keys() & self.grid.keys():
                raise KeyedError("grid", f"{key}, which list has too", "each key in one of them")
        if "name" in self.grid:
            raise KeyedError("grid", "name", "name in list alone: it names the cell")
        if not varied:
            raise KeyedError("grid", "nothing", "a key with its values, here or in list")
        for key in self.per:
            if key not in varied:
                raise KeyedError("per", key, f"a key that varies: {', '.join(sorted(varied))}")
        grids = [] if self.tune is None else [("grid", self.tune.grid), *self.tune.methods.items()]
        for name, grid in grids:
            for key in sorted({"seed", "name", *varied} & grid.keys()):
                raise KeyedError(f"tune.{name}", key, "a key that the cells do not vary themselves")
        return self


def load_sweep(path: Path) -> SweepConfig:
    """Read a sweep's file; UserError with one line for the first mistake."""
    data = read_mapping(path)
    try:
        return SweepConfig.model_validate(copy.deepcopy(data))
    except ValidationError as error:
        Source(str(path), []).refuse(mistakes(error, data, SweepConfig))
