"""Packed states are safetensors files, byte for byte, in memory, on disk and inside a checkpoint's file."""

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fedsim.storage.packed import (
    OWN_PAGES_BYTES,
    StatesFile,
    pack,
    read_packed,
    split_image,
    write_packed,
    write_states,
)
from tests.unit.storage.test_store import mixed, same

CPU = torch.device("cpu")
LARGE = {"weights": torch.arange(OWN_PAGES_BYTES / 4 + 3), "flag": torch.tensor(True)}


@pytest.mark.parametrize(
    "state", [mixed(3), LARGE, {}, {"empty": torch.zeros(0)}], ids=["mixed", "large", "none", "empty"]
)
def test_the_same_state_in_every_form(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    packed = pack(state, CPU)
    write_packed(tmp_path / "state", packed)
    image = (tmp_path / "state").read_bytes()
    assert len(image) == packed.num_bytes
    assert packed.image().numpy().tobytes() == image
    assert hashlib.sha256(image).hexdigest() == packed.digest()
    # What the library that defines the format reads, and what the two readers of this one read.
    assert same(safetensors.torch.load(image), state)
    for found in (packed, read_packed(tmp_path / "state"), split_image(packed.image())):
        assert same(found.unpack(), state)
        assert found.header == packed.header
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_tensors_are_views_and_aligned() -> None:
    packed = pack(mixed(0), CPU)
    for value in packed.unpack().values():
        assert value.data_ptr() % value.element_size() == 0
        assert value.numel() == 0 or value.untyped_storage().data_ptr() == packed.data.untyped_storage().data_ptr()


def test_many_states_in_one_file(tmp_path: Path) -> None:
    states = {12: mixed(12), 3: {}, 5: LARGE}
    packed = {client: pack(state, CPU) for client, state in states.items()}
    sizes = {client: own.num_bytes for client, own in packed.items()}
    digest = write_states(tmp_path / "clients", sizes, packed.__getitem__)
    data = (tmp_path / "clients").read_bytes()
    assert digest == hashlib.sha256(data).hexdigest()
    file = StatesFile(tmp_path / "clients")
    assert file.clients == [12, 3, 5]
    outer = safetensors.torch.load(data)
    for client, state in states.items():
        assert same(file.read(client).unpack(), state)
        assert same(safetensors.torch.load(outer[str(client)].numpy().tobytes()), state)


def test_a_file_that_was_cut_is_no_state(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_packed(path, pack({"a": torch.arange(5.0)}, CPU))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AssertionError, match="19 bytes of 20"):
        read_packed(path)


def test_a_write_that_fails_leaves_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "clients"
    write_states(path, {1: pack(mixed(1), CPU).num_bytes}, lambda _: pack(mixed(1), CPU))
    with pytest.raises(KeyError):
        write_states(path, {2: 10}, {}.__getitem__)
    assert StatesFile(path).clients == [1]
    assert same(StatesFile(path).read(1).unpack(), mixed(1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["clients"]
