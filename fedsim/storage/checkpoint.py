"""Exact save and resume: the state after a round in a folder of its own, complete or not there at all.

    checkpoints/round-000012/  server.safetensors  clients-00000.safetensors ...  state.json
    checkpoints/best-000007/   the same

The folder is written under a temporary name, flushed and renamed. state.json names every file with its sha256,
the config that the state belongs to and the rows of the log so far, and seals itself; what does not fit is refused
with the reason. The states of clients are written and read one at a time, a file for each rank that held some.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import BaseModel, PositiveInt, ValidationError
from torch import Tensor

from fedsim.algorithms.base import ServerState
from fedsim.comm.group import Group
from fedsim.config.experiment import Config, as_computed
from fedsim.config.plain_yaml import to_yaml
from fedsim.errors import UserError
from fedsim.machine.files import sync_folder, write_atomic
from fedsim.machine.sealed import read_record, write_record
from fedsim.schedule.clock import Hands
from fedsim.storage.packed import StatesFile, file_digest, write_states
from fedsim.storage.rows import Seal
from fedsim.storage.store import ClientStore

FORMAT = 4
RECORD_FILE = "state.json"
SERVER_FILE = "server.safetensors"
CLIENTS_FILE = re.compile(r"clients-\d{5}\.safetensors")


@dataclass
class Progress:
    """What the round loop remembers beside the model: the best evaluation so far, whether to stop, and the clock."""

    best_round: int = 0
    best_value: float | None = None
    evaluations_since_best: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    best_metrics: dict[str, Any] = field(default_factory=dict)
    clock: Hands = field(default_factory=Hands)


class Record(BaseModel, strict=True, extra="forbid"):
    """The content of state.json. ``files``: sha256 by name; ``log``: each table's rows up to the round."""

    format: int
    config_sha256: str
    round: PositiveInt
    files: dict[str, str]
    log: dict[str, Seal]
    progress: Progress


@dataclass(frozen=True)
class Saved:
    """A checkpoint read back; ``clients``: the files with what clients keep; ``log``: as in ``Record``."""

    state: ServerState
    clients: list[StatesFile]
    progress: Progress
    log: Mapping[str, Seal]


class Checkpoints:
    """The checkpoints of one run folder. Every rank calls every method; rank 0 writes all but the clients' states."""

    def __init__(self, folder: Path, config: Config, group: Group) -> None:
        self.folder = folder
        # Where states rest is the machine's affair: a run may go on where there is less memory, or more.
        words = as_computed(config).model_dump(mode="json", exclude={"track"})
        self._config_digest = hashlib.sha256(to_yaml(words).encode()).hexdigest()
        self._keep = config.checkpoint.keep
        self._group = group
        # The best round so far: its number, this rank's file of clients' states in it, and the file's sha256.
        self._best_clients: tuple[int, Path, str] | None = None
        #: The latest round that a resume would go on from; before the first one nothing is lost.
        self.saved_round = 0

    def save(self, state: ServerState, store: ClientStore, progress: Progress, log: Mapping[str, Seal]) -> None:
        """Write the state after a round, then drop all but the latest ``keep``. ``log``: rank 0's tables."""
        self._write(self.folder / f"round-{state.round:06d}", state, store, progress, log)
        self.saved_round = state.round
        if self._group.is_server:
            self._prune()

    def save_best(self, state: ServerState, store: ClientStore, progress: Progress) -> None:
        """Keep the state of the best round beside the latest ones."""
        own = self._write(self._best(state.round), state, store, progress, {})
        self._best_clients = own and (state.round, self._best(state.round) / own[0], own[1])

    def _write(
        self, target: Path, state: ServerState, store: ClientStore, progress: Progress, log: Mapping[str, Seal]
    ) -> tuple[str, str] | None:
        """Write a checkpoint and return name and sha256 of this rank's file of clients' states, if it has any."""
        draft = target.with_name(f".{target.name}.draft")
        if self._group.is_server:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        self._group.broadcast("draft made")
        own = self._write_clients(draft, state.round, store) if store.sizes() else None
        digests = dict(filter(None, self._group.gather_to_all(own)))
        if self._group.is_server:
            record = Record(
                format=FORMAT,
                config_sha256=self._config_digest,
                round=state.round,
                files={SERVER_FILE: _write_server(draft, state)} | digests,
                log=dict(log),
                progress=progress,
            )
            self._publish(draft, target, record)
        return own

    def _write_clients(self, draft: Path, round: int, store: ClientStore) -> tuple[str, str]:
        """Write what this rank's clients keep; return name and sha256 of the file."""
        path = draft / f"clients-{self._group.rank:05d}.safetensors"
        if self._best_clients is not None and self._best_clients[0] == round:
            # The best of this round was saved a moment ago: no need to write its states twice where links are known.
            with contextlib.suppress(OSError):
                os.link(self._best_clients[1], path)
                return path.name, self._best_clients[2]
        return path.name, write_states(path, store.sizes(), store.look)

    def _prune(self) -> None:
        """Drop all but the latest rounds, and every best that none of them knows."""
        rounds = self._rounds()
        for old in rounds[: -self._keep]:
            shutil.rmtree(old)
        known = set()
        for path in rounds[-self._keep :]:
            # What cannot be read any more is reported when somebody wants to resume from it.
            with contextlib.suppress(UserError):
                known.add(self._best(_read_record(path).progress.best_round))
        for best in self.folder.glob("best-??????"):
            if best not in known:
                shutil.rmtree(best)

    def _best(self, round: int) -> Path:
        return self.folder / f"best-{round:06d}"

    def _publish(self, draft: Path, target: Path, record: Record) -> None:
        write_record(draft / RECORD_FILE, record.model_dump())
        sync_folder(draft)
        if target.exists():
            # Left by a run that was killed before a checkpoint named it; the same round gives the same again.
            shutil.rmtree(target)
        draft.rename(target)
        sync_folder(self.folder)

    def _rounds(self) -> list[Path]:
        return sorted(self.folder.glob("round-??????"))

    def load(self, which: str = "last") -> Saved | None:
        """Read the best or the last checkpoint; None where there is none yet.

        UserError where it is damaged, and for the best one where no evaluation gave a number to compare.
        """
        rounds = self._rounds()
        if not rounds:
            return None
        saved = self._read(rounds[-1])
        if which == "last":
            self.saved_round = saved.state.round
            return saved
        if saved.progress.best_round == 0:
            found = f"no best round: no evaluation up to round {saved.state.round} gave a number to compare"
            raise UserError(str(self.folder), found, "--checkpoint last")
        return self._read(self._best(saved.progress.best_round))

    def _read(self, folder: Path) -> Saved:
        earlier = [path for path in self._rounds() if path.name < folder.name and folder.name.startswith("round-")]
        damage = None
        try:
            record = _read_record(folder)
            digests = dict(record.files)
            _check_file(folder / SERVER_FILE, digests.pop(SERVER_FILE))
            tensors = safetensors.torch.load((folder / SERVER_FILE).read_bytes())
            files = sorted(digests)
            # The ranks share the work of checking what may be large.
            for name in files[self._group.rank :: self._group.num_ranks]:
                _check_file(folder / name, digests[name])
        except UserError as error:
            offer = f"; to go on from {earlier[-1].name} remove {folder}" if earlier else ""
            damage = [error.where, error.found, error.expected + offer]
        if damages := list(filter(None, self._group.gather_to_all(damage))):
            raise UserError(*damages[0])
        if record.config_sha256 != self._config_digest:
            raise UserError(str(folder), "a checkpoint of another config", "one of this run's config")
        clients = [StatesFile(folder / name) for name in files]
        return Saved(_state_of(record.round, tensors), clients, record.progress, record.log)


def _read_record(folder: Path) -> Record:
    path = folder / RECORD_FILE
    content = read_record(path, "a checkpoint's state.json", FORMAT)
    try:
        record = Record.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {key}", first["msg"], "a checkpoint's state.json") from None
    if not folder.name.endswith(f"-{record.round:06d}"):
        raise UserError(str(path), f"round {record.round}", f"the round of its folder, {folder.name}")
    if SERVER_FILE not in record.files or not all(map(CLIENTS_FILE.fullmatch, record.files.keys() - {SERVER_FILE})):
        raise UserError(str(path), f"files {', '.join(record.files)}", f"{SERVER_FILE} and the ranks' clients-*")
    return record


def _check_file(path: Path, digest: str) -> None:
    """Raise UserError unless the file is the one that was written."""
    try:
        found = file_digest(path)
    except OSError as error:
        raise UserError(str(path), f"no readable file ({error.strerror})", "the file that state.json names") from error
    if found != digest:
        size = path.stat().st_size
        raise UserError(str(path), f"{size} bytes of sha256 {found[:12]}", f"{digest[:12]}, as state.json says")


def server_tensors(state: ServerState) -> dict[str, Tensor]:
    """Return all tensors of a server state under one naming."""
    named = {f"params/{name}": value for name, value in state.params.items()}
    named |= {f"extra/{name}": value for name, value in state.extra.items()}
    named |= {f"layers/{name}": value for name, value in state.layers.items()}
    for round, older in state.older.items():
        # What no round has changed since is the same tensor, and safetensors takes each once.
        named |= {f"older/{round}/{name}": value.clone() for name, value in server_tensors(older).items()}
    return {name: value.cpu().contiguous() for name, value in named.items()}


def _state_of(round: int, tensors: Mapping[str, Tensor]) -> ServerState:
    """Return the state that ``server_tensors`` took apart."""
    params, extra, layers, older = (_below(tensors, start) for start in ("params/", "extra/", "layers/", "older/"))
    rounds = sorted({int(name.partition("/")[0]) for name in older})
    return ServerState(round, params, extra, layers, {r: _state_of(r, _below(older, f"{r}/")) for r in rounds})


def _below(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _write_server(folder: Path, state: ServerState) -> str:
    """Write the server's state and return the sha256 of the file."""
    content = safetensors.torch.save(server_tensors(state))
    write_atomic(folder / SERVER_FILE, content)
    return hashlib.sha256(content).hexdigest()
