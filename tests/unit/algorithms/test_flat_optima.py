"""Steps up the loss by hand, and what HarmoFL's clients share, keep and send."""

import math
from typing import Any

import pytest
import torch

from fedsim.algorithms.base import Algorithm
from fedsim.algorithms.harmofl import HarmoFL
from fedsim.algorithms.parts.ascent import adaptive, steepest
from fedsim.errors import UserError
from fedsim.models.specs import AMPLITUDE, AMPLITUDE_IS_FIXED, ParamSpec
from fedsim.simulation import Simulation
from tests.helpers import LORA, TINY_VIT, facts_of, play, same_bits, simulate

SPECS = {"x": ParamSpec((2,), "body"), "scale": ParamSpec((), "local")}
MODEL = {**TINY_VIT, "lora": LORA, "amplitude_norm": {}}


def test_one_norm_over_all_parameters_of_a_client() -> None:
    grads = {"x": torch.tensor([[1.0, 2.0], [0.0, 3.0]]), "scale": torch.tensor([2.0, 4.0])}
    rise = steepest(grads, SPECS, 0.3)
    assert rise["x"].flatten().tolist() == pytest.approx([0.1, 0.2, 0, 0.18])
    assert rise["scale"].tolist() == pytest.approx([0.2, 0.24])
    two_models = steepest({name: value[None] for name, value in grads.items()}, SPECS, 0.3)
    assert all(torch.equal(two_models[name][0], rise[name]) for name in rise)
    nothing = steepest({"x": torch.zeros(1, 2), "scale": torch.zeros(1)}, SPECS, 0.3)
    assert nothing["x"].tolist() == [[0, 0]]


def test_adaptive_norm_goes_with_the_weights() -> None:
    params = {"x": torch.tensor([[0.99, -1.99]]), "scale": torch.tensor([0.0])}
    grads = {"x": torch.tensor([[3.0, 2.0]]), "scale": torch.tensor([100.0])}
    # |w| + 0.01 is 1, 2, 0.01, so t g is 3, 4, 1.
    rise = adaptive(params, grads, SPECS, 2.0)
    norm = math.sqrt(26)
    assert rise["x"][0].tolist() == pytest.approx([6 / norm, 16 / norm])
    assert rise["scale"].tolist() == pytest.approx([0.02 / norm])


def test_a_method_that_does_not_climb_takes_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {}
    for method, words in (("fedavg", {}), ("fedsam", {"radius": 0.0}), ("fedsam", {"radius": 0.1})):
        sim = simulate([20], 1, algorithm={"name": method, **words}, train={"batch_size": 10})
        seen = []
        loss = sim.algorithm.loss
        monkeypatch.setattr(sim.algorithm, "loss", lambda batch, loss=loss, seen=seen: seen.append(1) or loss(batch))
        play(sim, 1)
        calls[method, *words.values()] = len(seen)
    assert calls == {("fedavg",): 2, ("fedsam", 0.0): 2, ("fedsam", 0.1): 4}


def harmofl(share: str, rounds: int) -> tuple[Simulation, list[dict[str, Any]], list[dict[str, torch.Tensor]]]:
    """A run, its log and the server's parameters round by round."""
    sim = simulate([20, 9, 5], 2, algorithm={"name": "harmofl", "share_target": share}, model=MODEL)
    rows, params, state = [], [], None
    for _ in range(rounds):
        state, records = play(sim, 1, state)
        rows.append(records[0].row)
        params.append(state.params)
    return sim, rows, params


def test_targets_shared_after_the_first_round_stay() -> None:
    sim, rows, params = harmofl("first", 3)
    assert all(one[AMPLITUDE_IS_FIXED] for one in params)
    assert params[0][AMPLITUDE].any()
    assert torch.equal(params[0][AMPLITUDE], params[2][AMPLITUDE])
    size = sim.model.specs[AMPLITUDE].shape
    assert rows[0]["bytes_up"] - rows[1]["bytes_up"] == 3 * (4 * math.prod(size) + 4)
    assert rows[1]["bytes_up"] == rows[2]["bytes_up"]


def test_targets_shared_every_round_move_on() -> None:
    _, rows, params = harmofl("every", 2)
    assert not params[1][AMPLITUDE_IS_FIXED]
    assert not torch.equal(params[0][AMPLITUDE], params[1][AMPLITUDE])
    assert rows[0]["bytes_up"] == rows[1]["bytes_up"]


def test_targets_never_shared_stay_with_the_clients() -> None:
    sim, _, params = harmofl("never", 2)
    assert not params[1][AMPLITUDE].any()
    own = [sim.store.read(client)[f"own/{AMPLITUDE}"] for client in range(3)]
    assert all(target.any() for target in own)
    assert not torch.equal(own[0], own[1])
    used = sim.algorithm.client_params([sim.store.read(client) for client in range(3)], params[1])["own"]
    assert torch.equal(used[AMPLITUDE], torch.stack(own))


def test_first_is_averaged_with_the_clients_weights() -> None:
    """A round of FedAvg with HarmoFL's perturbation is FedSAM's."""
    sam = simulate([20, 9, 5], 2, algorithm={"name": "fedsam", "radius": 0.05}, model=MODEL)
    state, _ = play(sam, 1)
    _, _, params = harmofl("first", 1)
    assert same_bits({**state.params, AMPLITUDE_IS_FIXED: torch.tensor(True)}, params[0])


def test_harmofl_needs_images_to_normalise() -> None:
    with pytest.raises(UserError, match=r"^model\.amplitude_norm: found null with algorithm\.name: harmofl; expected"):
        HarmoFL(HarmoFL.Config(), facts_of(SPECS))
    assert issubclass(HarmoFL, Algorithm)
