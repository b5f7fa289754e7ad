"""A round on 1,024 ranks without their processes: who trains what, and that all bring the same shapes.

PyTorch's fake process group reduces nothing, so this says nothing of sums.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from fedsim.algorithms.parts import by_products
from fedsim.algorithms.parts.by_products import WEIGHTS
from fedsim.comm.group import Group
from fedsim.comm.launcher import Place
from fedsim.schedule.cohort import draw_cohort
from fedsim.schedule.pace import Pace
from fedsim.schedule.ranks import assign_blocks
from fedsim.simulation import Simulation
from tests.helpers import play, simulate

NUM_RANKS = 1024
#: More clients than ranks in the first case, fewer in the second.
NUM_CLIENTS = (1100, 6)


@pytest.fixture(params=[0, 4, NUM_RANKS - 1])
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """The group of one of the ranks, in which every collective ends at once."""
    rank = request.param
    dist.init_process_group("fake", rank=rank, world_size=NUM_RANKS, store=FakeStore())
    meeting: Any = object()  # there is nobody to watch
    yield Group(Place(rank, NUM_RANKS, 0, "", 0, "none"), simulate([1], 1).group.device, "fake", meeting)
    dist.destroy_process_group()


def among(sim: Simulation, group: Group) -> Simulation:
    return replace(sim, group=group, pace=Pace(sim.config.train, sim.sizes, group.num_ranks))


def expected_shapes(num_clients: int, method: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What one rank alone would bring to its meetings, and a number for each of the others."""
    sim, brought = simulate([1] * num_clients, 1, algorithm={"name": method}), list[tuple[str, int]]()

    def note(group: Group, values: Tensor, operation: Any = dist.ReduceOp.SUM) -> Tensor:
        del group
        brought.append((str(operation), values.numel()))
        return values

    with monkeypatch.context() as patched:
        patched.setattr(Group, "_all_reduce", note)
        play(sim, 1)
    is_sum = [operation == str(dist.ReduceOp.SUM) for operation, _ in brought]
    return [(name, count + (NUM_RANKS - 1) * own) for (name, count), own in zip(brought, is_sum, strict=True)]


@pytest.mark.parametrize("method", ["deer", "flexlora"])
def test_every_rank_brings_the_same_shapes_with_or_without_blocks(
    group: Group, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought: list[tuple[str, int]] = []
    reduce = dist.all_reduce

    def note(values: Tensor, operation: Any) -> Any:
        brought.append((str(operation), values.numel()))
        return reduce(values, operation)

    num_clients = NUM_CLIENTS[1]
    expected = expected_shapes(num_clients, method, monkeypatch)
    sim = among(simulate([1] * num_clients, 1, algorithm={"name": method}), group)
    monkeypatch.setattr(dist, "all_reduce", note)
    # A rank without blocks gathers zeros here, among which no client has a share.
    monkeypatch.setattr(by_products, "weights_of", lambda aggregate, _: aggregate.gather[WEIGHTS][WEIGHTS])
    play(sim, 1)
    assert brought == expected
    assert group.bytes_sent == group.bytes_received == 8 * sum(count for _, count in brought)


@pytest.mark.parametrize("num_clients", NUM_CLIENTS)
def test_all_ranks_together_train_each_block_once(num_clients: int) -> None:
    sim = simulate([1 + client % 3 for client in range(num_clients)], 1)
    cohort = draw_cohort(sim.config.clients, sim.config.train, sim.sizes, 0, 1)
    blocks = cohort.blocks(sim.per_block)
    pace = Pace(sim.config.train, sim.sizes, NUM_RANKS)
    shares = assign_blocks(pace.expected_seconds(cohort, blocks), pace.expected_busy())
    assert len(shares) == NUM_RANKS
    assert sorted(block for share in shares for block in share) == list(range(num_clients))
    assert max(map(len, shares)) == -(-num_clients // NUM_RANKS)
