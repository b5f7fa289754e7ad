"""Exact save and resume: the state after a round in a folder of its own, complete or not there at all.

    checkpoints/round-000012/  server.safetensors  clients-00000.safetensors ...  state.json
    checkpoints/best-000007/   server.safetensors  state.json

The folder is written under a temporary name, flushed and renamed. state.json names every file with its sha256
and the config that the state belongs to; what does not fit is refused with the reason.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from algorithms.base import ServerState
from comm import Group
from fedsim.config import Config, dump_config
from fedsim.errors import UserError
from fedsim.files import sync_folder, write_atomic, write_json
from fedsim.store import State, pack_states, unpack_states

FORMAT = 1


@dataclass
class Progress:
    """What the round loop remembers beside the model: the best evaluation so far, and whether to stop."""

    best_round: int = 0
    best_value: float | None = None
    evaluations_since_best: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    best_metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """A checkpoint read back."""

    state: ServerState
    clients: dict[int, State]
    progress: Progress


class Checkpoints:
    """The checkpoints of one run folder. Every rank calls ``save``; rank 0 writes all but the clients' states."""

    def __init__(self, folder: Path, config: Config, group: Group) -> None:
        self.folder = folder
        self._config_digest = hashlib.sha256(dump_config(config).encode()).hexdigest()
        self._keep = config.checkpoint.keep
        self._group = group

    def save(self, state: ServerState, clients: Mapping[int, State], progress: Progress) -> None:
        """Write the state after a round, then drop all but the latest ``keep``."""
        name = f"round-{state.round:06d}"
        draft = self.folder / f".{name}.draft"
        if self._group.is_server:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        self._group.broadcast("draft made")
        file = f"clients-{self._group.rank:05d}.safetensors"
        digest = None
        if clients:
            data = pack_states(clients)
            write_atomic(draft / file, data)
            digest = [file, hashlib.sha256(data).hexdigest()]
        digests = [entry for entry in self._group.gather_to_all(digest) if entry]
        if self._group.is_server:
            _write_server(draft, state)
            self._publish(draft, self.folder / name, state, dict(digests), progress)
            self._prune()

    def save_best(self, state: ServerState, progress: Progress) -> None:
        """Keep the server's state of the best round beside the latest ones; server only."""
        draft = self.folder / ".best.draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        _write_server(draft, state)
        self._publish(draft, self._best(state.round), state, {}, progress)

    def _prune(self) -> None:
        """Drop all but the latest rounds, and every best that none of them knows."""
        rounds = self._rounds()
        for old in rounds[: -self._keep]:
            shutil.rmtree(old)
        known = set()
        for path in rounds[-self._keep :]:
            # What cannot be read any more is reported when somebody wants to resume from it.
            with contextlib.suppress(UserError):
                known.add(self._best(_read_record(path)["progress"]["best_round"]))
        for best in self.folder.glob("best-??????"):
            if best not in known:
                shutil.rmtree(best)

    def _best(self, round: int) -> Path:
        return self.folder / f"best-{round:06d}"

    def _publish(
        self, draft: Path, target: Path, state: ServerState, files: dict[str, str], progress: Progress
    ) -> None:
        server = hashlib.sha256((draft / "server.safetensors").read_bytes()).hexdigest()
        record = {
            "format": FORMAT,
            "config_sha256": self._config_digest,
            "round": state.round,
            "files": {"server.safetensors": server} | files,
            "progress": vars(progress),
        }
        write_json(draft / "state.json", record)
        sync_folder(draft)
        if target.exists():
            # Left by a run that was killed before a checkpoint named it; the same round gives the same again.
            shutil.rmtree(target)
        draft.rename(target)
        sync_folder(self.folder)

    def _rounds(self) -> list[Path]:
        return sorted(self.folder.glob("round-??????"))

    def load(self, which: str = "last") -> Saved | None:
        """Read the best or the last checkpoint; None where there is none yet. UserError where it is damaged."""
        rounds = self._rounds()
        if not rounds:
            return None
        saved = self._read(rounds[-1])
        return saved if which == "last" else self._read(self._best(saved.progress.best_round))

    def _read(self, folder: Path) -> Saved:
        earlier = [path for path in self._rounds() if path.name < folder.name and folder.name.startswith("round-")]
        try:
            record = _read_record(folder)
            contents = {name: _read_checked(folder / name, digest) for name, digest in record["files"].items()}
            tensors = safetensors.torch.load(contents.pop("server.safetensors"))
            clients: dict[int, State] = {}
            for data in contents.values():
                clients |= unpack_states(data)
        except UserError as error:
            offer = f"; to go on from {earlier[-1].name} remove {folder}" if earlier else ""
            raise type(error)(error.where, error.found, error.expected + offer) from error
        if record["config_sha256"] != self._config_digest:
            raise UserError(str(folder), "a checkpoint of another config", "one of this run's config")
        params, extra = (_below(tensors, start) for start in ("params/", "extra/"))
        return Saved(ServerState(record["round"], params, extra), clients, Progress(**record["progress"]))


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / "state.json"
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"no readable JSON ({error})", "a checkpoint's state.json") from error
    keys = {"config_sha256", "round", "files", "progress"}
    if not isinstance(record, dict) or record.get("format") != FORMAT or not keys <= record.keys():
        raise UserError(str(path), "something else", f"a checkpoint's state.json of format {FORMAT}")
    return record


def _read_checked(path: Path, digest: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(str(path), f"no readable file ({error.strerror})", "the file that state.json names") from error
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise UserError(str(path), f"{len(data)} bytes of sha256 {found[:12]}", f"{digest[:12]}, as state.json says")
    return data


def server_tensors(state: ServerState) -> dict[str, Tensor]:
    """Return all tensors of a server state under one naming."""
    named = {f"params/{name}": value for name, value in state.params.items()}
    named |= {f"extra/{name}": value for name, value in state.extra.items()}
    return {name: value.cpu().contiguous() for name, value in named.items()}


def _below(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _write_server(folder: Path, state: ServerState) -> None:
    write_atomic(folder / "server.safetensors", safetensors.torch.save(server_tensors(state)))
