"""A run's numbers for MLflow and Weights & Biases, which users install themselves.

A run is the same one there after a resume: it has an id of its own in its folder. Whoever is told says which numbers it
has, and gets those of metrics.jsonl that it lacks, each once: a resumed run computes rounds again, with the same bits.
A run that has begun does not end where one of them fails: its own folder has all.
"""

import importlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fedsim.config.experiment import Config
from fedsim.config.plain_yaml import flatten
from fedsim.config.track import TrackConfig
from fedsim.errors import UserError
from fedsim.machine.files import finite, write_atomic
from fedsim.storage.rows import read_rows

ID_FILE = "tracking_id"
Say = Callable[[str], object]
PACKAGES = {"mlflow": ("mlflow", "mlflow-skinny SQLAlchemy alembic"), "wandb": ("wandb", "wandb")}


class Tracker(Protocol):
    """Somebody who is told a run's numbers."""

    def append(self, round: int, numbers: Mapping[str, float]) -> None:
        """Take a round's numbers, but for those that are there; UserError where that fails."""

    def close(self, *, failed: bool) -> None:
        """Note how the run has ended."""


def require_packages(track: TrackConfig | None) -> None:
    """UserError where a package is missing that the config asks for."""
    for key, (module, packages) in PACKAGES.items():
        if track is not None and getattr(track, key) is not None:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise UserError(f"track.{key}", str(error), f"its package: pip install {packages}") from None


def open_trackers(folder: Path, config: Config) -> list[Tracker]:
    """Open all that the config names, and bring them up to the rows in ``folder``. UserError where that fails."""
    track, found = config.track, list[Tracker]()
    if track is None:
        return found
    own_id, words = id_of(folder), plain_words(config)
    if track.mlflow is not None:
        from fedsim.runfolder.tracking.mlflow_store import MLflow  # late, as is what it imports

        found.append(MLflow(track.mlflow, own_id, config.name, words))
    if track.wandb is not None:
        from fedsim.runfolder.tracking.wandb_run import WandB  # late, as above

        found.append(WandB(folder, track.wandb, own_id, config.name, words))
    for row in read_rows(folder / "metrics.jsonl"):
        for tracker in found:
            tracker.append(row["round"], numbers_of(finite(row)))
    return found


def tell(trackers: Sequence[Tracker], row: Mapping[str, Any], say: Say) -> list[Tracker]:
    """Give a round's row to all; say who fails, and return the others."""
    numbers = numbers_of(finite(row))
    return [one for one in trackers if succeeds(partial(one.append, row["round"], numbers), say)]


def close_trackers(trackers: Sequence[Tracker], error: BaseException | None, say: Say) -> None:
    """Tell all how the run has ended; say who fails, but for a run that was ended before its time."""
    for one in trackers:
        succeeds(partial(one.close, failed=error is not None), say if error is None else str)


def succeeds(act: Callable[[], None], say: Say) -> bool:
    """Whether somebody takes what is told; say that the run goes on without those who do not."""
    try:
        act()
    except UserError as error:
        say(f"goes on without: {error}")
        return False
    return True


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a round's row, what is nested under names with slashes."""
    found = {name: value for name, value in flatten(row, "/").items() if isinstance(value, int | float)}
    del found["round"]
    return found


def plain_words(config: Config) -> dict[str, Any]:
    """Return the config on one level."""
    return flatten(config.model_dump(mode="json"), ".")


def id_of(folder: Path) -> str:
    """Return what the run is called elsewhere, the same after every start."""
    file = folder / ID_FILE
    if not file.exists():
        write_atomic(file, secrets.token_hex(8).encode())
    found = file.read_bytes().decode(errors="replace").strip()
    if not found.isalnum() or not found.isascii():
        raise UserError(str(file), "no letters and digits", "what the run has written; remove it for a new one")
    return found
