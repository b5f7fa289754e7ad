"""States of clients between rounds, and the digest that stands for a state."""

import pytest
import torch

from comm import open_group
from fedsim.store import ClientStore, State, digest_tensors, pack_states, unpack_states


def states() -> dict[int, State]:
    stream = torch.Generator().manual_seed(0)
    return {
        client: {
            "optimizer/train/momentum": torch.randn(5, generator=stream),
            "num_steps": torch.tensor([float(client)], dtype=torch.float64),
            "flag": torch.tensor([True, False]),
            "half": torch.randn(2, 3, generator=stream).bfloat16(),
        }
        for client in (3, 12, 0)
    }


def test_there_and_back() -> None:
    before = states()
    after = unpack_states(pack_states(before))
    assert after.keys() == before.keys()
    for client, own in before.items():
        assert digest_tensors(after[client]) == digest_tensors(own)


def test_a_single_process_holds_all() -> None:
    store = ClientStore(open_group())
    store.adopt(states())
    store.move({3: 0, 5: 0})
    assert set(store.states) == {0, 3, 12}
    assert store.holder == {0: 0, 3: 0, 5: 0, 12: 0}


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


@pytest.mark.parametrize("value", [torch.arange(6.0).view(2, 3), torch.ones(2, 3).bfloat16()])
def test_digest_does_not_see_order_and_layout(value: torch.Tensor) -> None:
    other = torch.tensor(1)
    strided = value.T.contiguous().T
    assert not strided.is_contiguous()
    assert digest_tensors({"a": value, "b": other}) == digest_tensors({"b": other, "a": strided})
