"""What a sweep says of itself in its folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.errors import UserError
from fedsim.machine.files import parse_json

FILE_NAME = "sweep.json"
#: The folder of the runs that settings are chosen by.
TRIALS = "trials"
#: Of the file's form; a change that readers would stumble over raises it.
SCHEMA = 2


@dataclass(frozen=True)
class SweepRecord:
    """``cells``: names of the run folders. ``per``: keys with a table of their own for each value.

    ``listed``: what the cells' entries of the list are called, of those that have a name.
    ``trials``: names, contenders and settings of the runs that chose; ``by``: the metric that they were judged by, None
    for each run's own; ``chosen``: settings by contender; ``diverged``: names of the trials that did.
    """

    cells: list[str]
    contenders: dict[str, str]
    listed: dict[str, str]
    per: list[str]
    trials: list[dict[str, Any]]
    by: str | None
    chosen: dict[str, dict[str, Any]]
    diverged: list[str]


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (folder / FILE_NAME).is_file()


def read_sweep(folder: Path) -> SweepRecord:
    """Return what a sweep's folder says of itself; UserError where that cannot be read."""
    file = folder / FILE_NAME
    try:
        content = parse_json(file.read_text())
        schema = content["schema"]
        if schema == SCHEMA:
            return SweepRecord(
                [cell["name"] for cell in content["cells"]],
                {cell["name"]: cell["contender"] for cell in content["cells"]},
                {cell["name"]: name for cell in content["cells"] if (name := cell["changes"].get("name"))},
                content["per"],
                content["trials"],
                content["by"],
                content["chosen"],
                content["diverged"],
            )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(str(file), f"no record of a sweep ({error})", "what launch.py sweep writes") from None
    raise UserError(str(file), f"schema {schema}", f"{SCHEMA}; start launch.py sweep again, which writes it")


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders behind paths: themselves, or those of a sweep's cells that have begun.

    UserError for a path that is neither.
    """
    found = []
    for path in paths:
        if is_sweep(path):
            cells = [path / name for name in read_sweep(path).cells]
            found += [cell for cell in cells if (cell / "config.yaml").is_file()]
        elif (path / "config.yaml").is_file():
            found.append(path)
        else:
            found_there = f"neither config.yaml nor {FILE_NAME} in it" if path.is_dir() else "no folder"
            raise UserError(str(path), found_there, "a run folder, or that of a sweep")
    return found
