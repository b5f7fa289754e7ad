"""Where the keys of a config came from, to name the right place in an error."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from fedsim.catalogue.models import WEIGHT_FILES
from fedsim.config.data import DataConfig
from fedsim.config.mistakes import Mistake
from fedsim.config.plain_yaml import COMMAND_LINE, require_file
from fedsim.config.words import ModelConfig
from fedsim.errors import UserError


class Source:
    """A file, and the keys that the command line has changed."""

    def __init__(self, file: str, overridden: Sequence[str]) -> None:
        self.file = file
        self.overridden = overridden

    def where(self, key: str) -> str:
        """``FILE: key`` or ``command line: key``."""
        pairs = [(f"{key}.", f"{typed}.") for typed in self.overridden]
        is_typed = any(mine.startswith(typed) or typed.startswith(mine) for mine, typed in pairs)
        return f"{COMMAND_LINE if is_typed else self.file}: {key}"

    @contextmanager
    def naming(self, key: str) -> Iterator[None]:
        """Let a UserError inside say where ``key`` stands."""
        try:
            yield
        except UserError as error:
            raise UserError(self.where(key), error.found, error.expected) from None

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
        if str(model.weights).endswith(WEIGHT_FILES):
            require_file(Path(str(model.weights)), self.where("model.weights"))
        if model.start_from is not None:
            require_file(Path(model.start_from), self.where("model.start_from"), folder=True)
        self.check_root(data)
        if model.submodel is not None and model.submodel.folder is not None:
            require_file(Path(model.submodel.folder), self.where("model.submodel.folder"), folder=True)

    def check_root(self, data: DataConfig) -> None:
        """UserError where the folder of the data does not exist."""
        if data.root is not None:
            require_file(Path(data.root), self.where("data.root"), folder=True)
