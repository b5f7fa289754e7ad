"""Weights & Biases: a run online, or as files in the run folder.

Offline every start leaves a folder of its own, all with the run's id, which ``wandb sync`` makes one run of. What they
hold is read back before more is written, since nobody else knows what a start that was killed had written.
"""

import importlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from fedsim.errors import reading

EXPECTED = "a run that can be written; --resume brings it up to date"
# The log: 7 bytes, then records in blocks, as LevelDB has them: checksum, length, kind, and the bytes of a message.
BLOCK, BEGINNING = 32768, 7
HEADER = struct.Struct("<IHB")
NOTHING, FULL, FIRST, LAST = 0, 1, 2, 4


class WandB:
    """The run with ``own_id``. Its project is "fedsim", or what WANDB_PROJECT says."""

    def __init__(
        self, folder: Path, mode: Literal["offline", "online"], own_id: str, name: str, words: Mapping[str, Any]
    ) -> None:
        # A simulator of hospitals calls nobody whom its user has not named.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        with reading("track.wandb", EXPECTED):
            wandb = importlib.import_module("wandb")
            self._known = {step for path in logs(folder, own_id) for step in read_log(path)}
            settings = wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_disable_meta=True,
                x_save_requirements=False,
            )
            self._run = wandb.init(
                id=own_id,
                resume="allow" if mode == "online" else None,
                mode=mode,
                name=name,
                project=os.environ.get("WANDB_PROJECT", "fedsim"),
                dir=str(folder),
                config=dict(words),
                settings=settings,
            )
        if mode == "online":
            self._known = set(range(self._run.step))  # what the server has

    def append(self, round: int, numbers: Mapping[str, float]) -> None:
        """Take a round's numbers, but for a round that is there."""
        if round not in self._known:
            with reading("track.wandb", EXPECTED):
                self._run.log(dict(numbers), step=round, commit=True)
            self._known.add(round)

    def close(self, *, failed: bool) -> None:
        """Note how the run has ended."""
        with reading("track.wandb", EXPECTED):
            self._run.finish(exit_code=int(failed))


def logs(folder: Path, own_id: str) -> list[Path]:
    """Return the logs that a run's starts have left, the first one first."""
    return sorted((folder / "wandb").glob(f"*run-*-{own_id}/run-{own_id}.wandb"))


def read_log(path: Path) -> dict[int, dict[str, float]]:
    """Return the numbers in a log by their rounds; what a kill has torn at its end is left out."""
    message = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    found: dict[int, dict[str, float]] = {}
    for content in records(path.read_bytes()):
        record = message.FromString(content)
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            found[json.loads(items["_step"])] = {
                name: json.loads(value) for name, value in items.items() if not name.startswith("_")
            }
    return found


def records(content: bytes) -> Iterator[bytes]:
    """Yield the whole records of a log."""
    place, whole = BEGINNING, b""
    while True:
        left = BLOCK - place % BLOCK
        place += left if left < HEADER.size else 0
        if place + HEADER.size > len(content):
            return
        _, length, kind = HEADER.unpack_from(content, place)
        place += HEADER.size
        piece = content[place : place + length]
        if kind == NOTHING or len(piece) < length:
            return
        whole = piece if kind in (FULL, FIRST) else whole + piece
        if kind in (FULL, LAST):
            yield whole
        place += length
