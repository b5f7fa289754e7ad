"""What a rank sends in a phase, whoever trains in it."""

import pytest
import torch
from torch import Tensor

from fedsim.comm.group import Group
from fedsim.measure.client_scores import ClientScores
from fedsim.phase import meet, train_blocks
from fedsim.schedule.cohort import draw_cohort
from tests.helpers import LORA, TINY_VIT, simulate

#: A loss, a squared norm and seconds, in float64: all that the simulator observes of a single client.
BYTES_PER_CLIENT = 3 * 8


def sent_with(num_clients: int, monkeypatch: pytest.MonkeyPatch, method: str) -> tuple[int, dict[str, Tensor]]:
    """The bytes that a rank brings to the collectives of a phase, and the mean that comes of them."""
    sim = simulate([1] * num_clients, num_clients, algorithm={"name": method}, model={**TINY_VIT, "lora": LORA})
    state, phase = sim.initial_state(), sim.algorithm.phases(1)[0]
    cohort = draw_cohort(sim.config.clients, sim.config.train, sim.sizes, 0, 1)
    assert len(cohort.clients) == num_clients
    scores = ClientScores(sim, state, cohort, [], None)
    sums = train_blocks(sim, state, phase, cohort, cohort.blocks(sim.per_block), scores)
    sent: list[int] = []

    def count(group: Group, values: Tensor) -> Tensor:
        del group
        sent.append(values.nbytes)
        return values.clone()

    with monkeypatch.context() as patched:
        patched.setattr(Group, "sum_exact", count)
        patched.setattr(Group, "max_exact", count)
        released, _ = meet(sim.group, sums)
    return sum(sent), released.mean["params"]


@pytest.mark.parametrize("method", ["fedavg", "deer"])
def test_a_lora_round_sends_no_factors_of_single_clients(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few, mean = sent_with(12, monkeypatch, method)
    many, _ = sent_with(1200, monkeypatch, method)
    assert sum(value.numel() for value in mean.values()) * 8 < few, "the sums themselves are in it"
    assert many - few == BYTES_PER_CLIENT * (1200 - 12)
    assert all(torch.isfinite(value).all() for value in mean.values())
