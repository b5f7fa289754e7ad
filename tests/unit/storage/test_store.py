"""States of clients between rounds: wherever they rest they come back with the same bits, and late changes are lost."""

import copy
import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedsim.comm.group import open_group
from fedsim.errors import UserError
from fedsim.machine.sealed import digest_tensors
from fedsim.storage import store as store_module
from fedsim.storage.packed import State, StatesFile, pack, write_states
from fedsim.storage.store import Budget, ClientStore, Move, scratch_folder, waves

CPU = torch.device("cpu")
SIZE = pack({"value": torch.zeros(100)}, CPU).num_bytes


def small(client: int) -> State:
    return {"value": torch.full((100,), float(client))}


def mixed(client: int) -> State:
    """Types of every width, a scalar, an empty tensor, rows of something larger."""
    stream = torch.Generator().manual_seed(client)
    return {
        "optimizer/train/momentum": torch.randn(4, 5, generator=stream).T,
        "num_steps": torch.tensor(float(client), dtype=torch.float64),
        "flag": torch.tensor([True, False, True]),
        "half": torch.randn(2, 3, generator=stream).bfloat16(),
        "count": torch.tensor([client]),
        "empty": torch.zeros(0, 3),
        "spectrum": torch.randn(3, dtype=torch.complex64, generator=stream),
        "special": torch.tensor([float("nan"), -0.0, float("inf")]),
        "row": torch.arange(12.0).view(3, 4)[1],
    }


def same(found: State, expected: State) -> bool:
    """The same bits, which tell nan from nothing and -0 from 0."""
    return found.keys() == expected.keys() and digest_tensors(found) == digest_tensors(expected)


def open_store(folder: Path, device: float, host: float, create: Any = small) -> ClientStore:
    """Budgets in states of ``small``."""
    return ClientStore(open_group(), create, Budget(device * SIZE, host * SIZE, folder / "spilled"))


def where(store: ClientStore, folder: Path) -> list[list[int]]:
    """The clients on the device, in host memory and on disk."""
    on_disk = sorted(int(path.stem) for path in folder.glob("spilled/*.safetensors"))
    return [*(list(tier.states) for tier in store._tiers), on_disk]


def touch(store: ClientStore, *clients: int) -> None:
    for client in clients:
        with store.open([client]):
            pass


def test_the_least_recently_needed_goes_down_first(tmp_path: Path) -> None:
    store = open_store(tmp_path, device=1, host=2)
    touch(store, 0, 1, 2, 3, 4)
    assert where(store, tmp_path) == [[4], [2, 3], [0, 1]]
    touch(store, 2)
    assert where(store, tmp_path) == [[2], [3, 4], [0, 1]]
    touch(store, 0)
    assert where(store, tmp_path) == [[0], [4, 2], [1, 3]]
    store.read(1)
    assert where(store, tmp_path) == [[0], [4, 2], [1, 3]]
    for client in range(5):
        assert same(store.read(client), small(client))


def test_a_state_that_fits_nowhere_and_one_that_grows(tmp_path: Path) -> None:
    store = open_store(tmp_path, device=1, host=1.5)
    touch(store, 0, 1)
    with store.open([1]) as (state,):
        state["more"] = torch.arange(70.0)
    # Too large now for the device, and for host memory, which it does not make others leave.
    assert where(store, tmp_path) == [[], [0], [1]]
    assert same(store.read(1), small(1) | {"more": torch.arange(70.0)})
    assert sum(tier.num_bytes for tier in store._tiers) == SIZE


BUDGETS = [(0, float("inf")), (0, 0), (1.5, 1.5), (0, 2.5), (100, 0)]


@pytest.mark.parametrize(("device", "host"), BUDGETS)
def test_any_budget_gives_the_same_bits(device: float, host: float, tmp_path: Path) -> None:
    """Random work of all kinds on states of changing size, against plain mappings."""
    store = open_store(tmp_path, device, host, mixed)
    plain: dict[int, State] = {}
    stream = torch.Generator().manual_seed(7)
    for step in range(60):
        clients = torch.randperm(8, generator=stream)[:3].tolist()
        with store.open(clients) as states:
            for client, state in zip(clients, states, strict=True):
                own = plain.setdefault(client, copy.deepcopy(mixed(client)))
                assert same(state, own)
                for change in (state, own):
                    change["special"][2] += step
                    change["num_steps"].add_(1)
                    change[f"grown {step % 4}"] = torch.full((step, 7), float(client))
                    change.pop(f"grown {(step + 2) % 4}", None)
    assert sorted(plain) == list(range(8))
    assert all(same(store.read(client), own) for client, own in plain.items())
    unlimited = ClientStore(open_group(), lambda client: plain[client])
    with unlimited.open(list(plain)):
        pass
    assert store.digest("server") == unlimited.digest("server")


@pytest.mark.parametrize(("device", "host"), BUDGETS)
def test_what_is_kept_from_an_open_state_has_no_way_back(device: float, host: float, tmp_path: Path) -> None:
    store = open_store(tmp_path, device, host)
    block = torch.zeros(2, 100)
    with store.open([0, 1]) as states:
        old = states[0]["value"]
        for state, row in zip(states, block, strict=True):
            state["value"] = row
    with pytest.raises(KeyError):
        states[0]["value"] += 1
    block += 5
    old += 5
    store.read(0)["value"].add_(5)
    with store.open([0]) as (state,):
        view = state["value"]
    view += 5
    assert all(same(store.read(client), {"value": torch.zeros(100)}) for client in (0, 1))


def test_a_row_does_not_keep_its_block_in_memory(tmp_path: Path) -> None:
    store = open_store(tmp_path, 0, float("inf"))
    with store.open([0]) as (state,):
        state["value"] = torch.zeros(1000, 100)[3]
    assert store.look(0).data.untyped_storage().nbytes() == 400


def test_open_twice_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path, 0, 0)
    with pytest.raises(AssertionError, match="open once"), store.open([3]), store.open([2, 3]):
        pass


def test_who_keeps_nothing_gets_an_empty_state_each_time() -> None:
    store = ClientStore(open_group())
    with store.open([1, 2]) as (state, other):
        state["x"] = torch.ones(1)
        assert other == {}
    with store.open([1]) as states:
        assert states == [{}]
    assert store.read(1) == {}
    assert store.sizes() == {}
    assert store.digest("server") == "server"


def test_an_emptied_state_is_not_made_again(tmp_path: Path) -> None:
    store = open_store(tmp_path, 0, 0)
    with store.open([1]) as (state,):
        state.clear()
    write_states(tmp_path / "states", store.sizes(), store.look)
    resumed = open_store(tmp_path / "other", 0, 1)
    resumed.adopt([StatesFile(tmp_path / "states")])
    for one in (store, resumed):
        with one.open([1]) as states:
            assert states == [{}]


def test_an_unknown_type_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path, 0, 0, lambda _: {"wide": torch.zeros(1, dtype=torch.complex128)})
    with pytest.raises(UserError, match=r"tensor wide: found torch\.complex128"), store.open([0]):
        pass


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module, "write_packed", full)
    with pytest.raises(UserError, match=r"spilled: found No space left on device.*store\.host_gib"):
        touch(open_store(tmp_path, 0, 0), 0)


def test_scratch_of_a_killed_run_goes_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "spilled-00007").mkdir()
    (tmp_path / "spilled-00007" / "3.safetensors").write_bytes(b"old")
    with scratch_folder(tmp_path, open_group()) as folder:
        assert list(tmp_path.iterdir()) == []
        store = ClientStore(open_group(), small, Budget(0, 0, folder))
        touch(store, 3)
        assert [path.name for path in folder.iterdir()] == ["3.safetensors"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_every_rank_adopts_its_share_of_any_number_of_files(num_ranks: int, tmp_path: Path) -> None:
    files = []
    for number, clients in enumerate(([3, 12, 0], [7])):
        store = open_store(tmp_path / str(number), 0, 0, mixed)
        (tmp_path / str(number)).mkdir()
        touch(store, *clients)
        path = tmp_path / f"clients-{number}"
        write_states(path, store.sizes(), store.look)
        files.append(StatesFile(path))
    held: dict[int, str] = {}
    for rank in range(num_ranks):
        group: Any = SimpleNamespace(rank=rank, num_ranks=num_ranks, device=CPU)
        store = ClientStore(group, mixed)
        store.adopt(files)
        assert store.holder == {client: client % num_ranks for client in (0, 3, 7, 12)}
        assert not held.keys() & store.sizes().keys()
        held |= {client: store.look(client).digest() for client in store.sizes()}
    assert held == {client: pack(mixed(client), CPU).digest() for client in (0, 3, 7, 12)}


def test_waves_bound_what_a_rank_sends_and_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "WAVE_BYTES", 10)
    # Rank 0 sends all: two of 5 bytes fill a wave, and a large one goes alone. Others may share a wave with it.
    moves = [Move(0, 0, 1), Move(1, 0, 2), Move(2, 0, 1), Move(3, 2, 1), Move(4, 0, 1), Move(5, 0, 2)]
    sizes = {0: 5, 1: 5, 2: 4, 3: 6, 4: 50, 5: 1}
    found = [[move.client for move in wave] for wave in waves(moves, sizes)]
    assert found == [[0, 1], [2, 3], [4], [5]]
    assert list(waves([], {})) == []


def test_digest_sees_every_difference() -> None:
    base = {"a": torch.arange(6.0), "b": torch.tensor(1)}
    variants = [
        base,
        {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)},
        {"a": torch.arange(6.0).double(), "b": torch.tensor(1)},
        {"a": torch.arange(6.0), "c": torch.tensor(1)},
        {"a": torch.arange(6.0), "b": torch.tensor(2)},
        {"a": torch.arange(6.0)},
        {"a": -torch.zeros(6), "b": torch.tensor(1)},
        {"a": torch.zeros(6), "b": torch.tensor(1)},
        {"a": torch.zeros(0), "b": torch.tensor(1)},
    ]
    assert len({digest_tensors(variant) for variant in variants}) == len(variants)
    assert len({pack(variant, CPU).digest() for variant in variants}) == len(variants)


@pytest.mark.parametrize("value", [torch.arange(6.0).view(2, 3), torch.ones(2, 3).bfloat16()])
def test_digest_does_not_see_order_and_layout(value: torch.Tensor) -> None:
    other = torch.tensor(1)
    strided = value.T.contiguous().T
    assert not strided.is_contiguous()
    one, two = {"a": value, "b": other}, {"b": other, "a": strided}
    assert digest_tensors(one) == digest_tensors(two)
    assert pack(one, CPU).digest() == pack(two, CPU).digest()
