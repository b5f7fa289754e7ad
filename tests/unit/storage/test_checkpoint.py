"""Checkpoints: the same bits back, the right ones kept, and one line for what is damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedsim.algorithms.base import ServerState
from fedsim.comm.group import open_group
from fedsim.config.experiment import Config
from fedsim.config.track import TrackConfig
from fedsim.errors import UserError
from fedsim.storage import checkpoint
from fedsim.storage.checkpoint import Checkpoints, Progress, Saved
from fedsim.storage.rows import Seal
from fedsim.storage.store import ClientStore
from tests.helpers import make_config, same_bits

CONFIG = make_config(checkpoint={"keep": 2})


def state(round: int) -> ServerState:
    stream = torch.Generator().manual_seed(round)
    params = {"head.weight": torch.randn(3, 4, generator=stream), "count": torch.tensor(round)}
    return ServerState(round, params, {"moment/head.weight": torch.randn(3, 4, generator=stream).double()})


def clients(round: int) -> dict[int, dict[str, torch.Tensor]]:
    return {4: {"momentum": torch.full((2,), float(round))}, 11: {"momentum": torch.tensor([0.0, -0.0])}, 12: {}}


def store(round: int) -> ClientStore:
    """What the clients keep after a round."""
    made = ClientStore(open_group(), lambda client: clients(round)[client])
    with made.open(list(clients(round))):
        pass
    return made


def check_clients(saved: Saved, round: int) -> None:
    adopted = ClientStore(open_group(), lambda _: {})
    adopted.adopt(saved.clients)
    assert adopted.sizes() == store(round).sizes()
    for client, own in clients(round).items():
        assert same_bits(adopted.read(client), own)
    assert torch.signbit(adopted.read(11)["momentum"][1])


def open_checkpoints(folder: Path, config: Config = CONFIG) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", config, open_group())


def save(folder: Path, rounds: range, best_round: int = 1) -> Checkpoints:
    made = open_checkpoints(folder)
    for round in rounds:
        progress = Progress(min(best_round, round), 0.1 + 0.2, 0, {}, {"val": {"accuracy": 1 / 3}})
        if round <= best_round:
            made.save_best(state(round), store(round), progress)
        made.save(state(round), store(round), progress, {"metrics": Seal(round, "ab")})
    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_same_bits_back(tmp_path: Path) -> None:
    saved = save(tmp_path, range(1, 3)).load()
    assert saved is not None
    expected = state(2)
    assert saved.state.round == 2
    assert same_bits(saved.state.params, expected.params)
    assert same_bits(saved.state.extra, expected.extra)
    check_clients(saved, 2)
    assert saved.progress == Progress(1, 0.1 + 0.2, 0, {}, {"val": {"accuracy": 1 / 3}})
    assert saved.log == {"metrics": Seal(2, "ab")}


def test_nothing_yet(tmp_path: Path) -> None:
    assert open_checkpoints(tmp_path).load() is None


def test_latest_and_best_are_kept(tmp_path: Path) -> None:
    made = save(tmp_path, range(1, 8), best_round=3)
    assert names(tmp_path) == ["best-000003", "round-000006", "round-000007"]
    last, best = made.load("last"), made.load("best")
    assert last is not None
    assert best is not None
    assert (last.state.round, best.state.round) == (7, 3)
    assert same_bits(best.state.params, state(3).params)
    check_clients(last, 7)
    check_clients(best, 3)


def test_a_round_saved_again_replaces_the_first(tmp_path: Path) -> None:
    """A run killed after its best was saved, and before its checkpoint, saves the same best again."""
    made = save(tmp_path, range(1, 3))
    (tmp_path / "checkpoints" / ".round-000002.draft").mkdir()
    made.save(state(2), ClientStore(open_group()), Progress(1), {})
    saved = made.load()
    assert saved is not None
    assert saved.clients == []
    assert names(tmp_path) == ["best-000001", "round-000001", "round-000002"]


def flip_a_byte(folder: Path) -> None:
    path = folder / "server.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-20]) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "state.json").write_text(text) and None


def drop_key(folder: Path) -> None:
    record = json.loads((folder / "state.json").read_text())
    del record["progress"]
    (folder / "state.json").write_text(json.dumps(record))


DAMAGES = {
    "flipped": ("server.safetensors", flip_a_byte),
    "cut": ("server.safetensors", cut("server.safetensors")),
    "cut clients": ("clients-00000.safetensors", cut("clients-00000.safetensors")),
    "missing": ("server.safetensors", remove("server.safetensors")),
    "cut json": ("state.json", cut("state.json")),
    "no json": ("state.json", remove("state.json")),
    "binary json": ("state.json", lambda folder: (folder / "state.json").write_bytes(b"\xff\x00") and None),
    "other json": ("state.json", write("[1, 2]")),
    "other format": ("state.json", write('{"format": 99}')),
    "json without a key": ("state.json", drop_key),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_named_and_the_previous_offered(case: str, tmp_path: Path) -> None:
    file, damage = DAMAGES[case]
    made = save(tmp_path, range(1, 4))
    latest = tmp_path / "checkpoints" / "round-000003"
    damage(latest)
    with pytest.raises(UserError) as caught:
        made.load()
    assert str(latest / file) in str(caught.value)
    assert f"to go on from round-000002 remove {latest}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_only_checkpoint_offers_no_other(tmp_path: Path) -> None:
    made = save(tmp_path, range(1, 2))
    flip_a_byte(tmp_path / "checkpoints" / "round-000001")
    with pytest.raises(UserError, match=r"as state\.json says$"):
        made.load()


def test_a_damaged_best_is_no_reason_to_go_back_a_round(tmp_path: Path) -> None:
    made = save(tmp_path, range(1, 4), best_round=2)
    flip_a_byte(tmp_path / "checkpoints" / "best-000002")
    assert made.load() is not None
    with pytest.raises(UserError, match=r"best-000002/server\.safetensors.*as state\.json says$"):
        made.load("best")


def test_another_config(tmp_path: Path) -> None:
    save(tmp_path, range(1, 2))
    other = open_checkpoints(tmp_path, CONFIG.model_copy(update={"seed": 6}))
    with pytest.raises(UserError, match="round-000001: found a checkpoint of another config"):
        other.load()


def test_another_budget_or_tracker_is_the_same_config(tmp_path: Path) -> None:
    save(tmp_path, range(1, 2))
    budget = CONFIG.store.model_copy(update={"host_gib": 0.5})
    for change in ({"store": budget}, {"track": TrackConfig(wandb="offline")}):
        assert open_checkpoints(tmp_path, CONFIG.model_copy(update=change)).load() is not None


def test_states_of_the_best_round_are_written_once(tmp_path: Path) -> None:
    """The round that was the best has the same file twice; a later round never has the best's."""
    made = save(tmp_path, range(1, 4), best_round=2)
    best, same_round, later = (
        (tmp_path / "checkpoints" / name / "clients-00000.safetensors").stat().st_ino
        for name in ("best-000002", "round-000002", "round-000003")
    )
    assert best == same_round != later
    saved = made.load()
    assert saved is not None
    check_clients(saved, 3)


def test_states_are_written_again_where_files_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(checkpoint.os, "link", refuse)
    saved = save(tmp_path, range(1, 2)).load()
    assert saved is not None
    check_clients(saved, 1)
