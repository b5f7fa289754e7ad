"""RoLoRA, FedSA-LoRA, FedSVD, FedRot-LoRA and SFed-LoRA in runs: what they share, what is measured, what is refused."""

import math
from typing import Any

import pytest
import torch

from fedsim.algorithms.lora.fedsvd import FedSVD
from fedsim.config.mistakes import KeyedError
from fedsim.errors import UserError
from fedsim.measure.global_model import global_model
from fedsim.measure.scores import evaluate
from tests.helpers import LORA, TINY_VIT, furthest, make_config, play, same_bits, simulate


@pytest.mark.parametrize("method", ["ffa_lora", "deer", "rolora", "fedsvd"])
def test_one_common_factor_leaves_no_deviation_in_a_run(method: str) -> None:
    """By the run's own diagnostics; with FedAvg there is some."""
    sections = {"train": {"epochs": 2, "lr": 0.2}, "clients": {"count": 3}}
    deviations = {}
    for name in (method, "fedavg"):
        _, records = play(simulate([40, 24, 8], 2, algorithm={"name": name}, **sections), 3)
        rows = [phase for record in records for phase in record.row["diagnostics"].values()]
        deviations[name] = [phase["aggregation_deviation"] for phase in rows]
        assert all(phase["effective_rank"] > 1 for phase in rows)
    assert set(deviations[method]) == {0.0}
    assert min(deviations["fedavg"]) > 0


def test_what_has_no_common_update_has_no_deviation() -> None:
    _, (record,) = play(simulate([16, 8], 2, algorithm={"name": "fedsa_lora"}), 1)
    (found,) = record.row["diagnostics"].values()
    for key in ("aggregation_deviation", "energy_kept", "residual_norm", "effective_rank"):
        assert found[key] is None
        assert set(found[f"{key}_per_layer"].values()) == {None}
    # Clients differ all the same.
    assert 0 < found["subspace_angle_b"] < 90


def test_the_global_model_has_the_mean_of_the_kept_factors() -> None:
    sim = simulate([30, 10], 2, algorithm={"name": "fedsa_lora"})
    state, _ = play(sim, 2)
    params = global_model(sim, state).params
    for name, spec in sim.held.specs.items():
        if spec.kind == "lora_b":
            assert not state.params[name].any()
            own = [sim.store.read(client)[f"own/{name}"] for client in (0, 1)]
            torch.testing.assert_close(params[name], 0.75 * own[0] + 0.25 * own[1])
        else:
            assert params[name] is state.params[name]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_sfed_lora_is_fedsa_lora_under_another_alpha(optimizer: str) -> None:
    """In what clients train, and in what is measured: two clients and rank 2 are lora_alpha 4 sqrt(2 / 2) over 1."""
    train = {"optimizer": optimizer, "lr": 0.02, "momentum": 0.0, "epochs": 2, "weight_decay": 0.01}
    lora = {**LORA, "lora_alpha": LORA["lora_alpha"] * math.sqrt(2 * LORA["r"])}
    ours = simulate([40, 24], 2, algorithm={"name": "sfed_lora"}, train=train)
    theirs = simulate([40, 24], 2, algorithm={"name": "fedsa_lora"}, train=train, model={**TINY_VIT, "lora": lora})
    (state, _), (other, _) = play(ours, 2), play(theirs, 2)
    kept, other_kept = ({name: sim.store.read(1)[name] for name in sim.store.read(1)} for sim in (ours, theirs))
    assert furthest({**state.params, **kept}, {**other.params, **other_kept})[0] < 1e-4
    found, expected = (evaluate(sim, global_model(sim, end).params) for sim, end in ((ours, state), (theirs, other)))
    assert found["val"]["loss"] == pytest.approx(expected["val"]["loss"], rel=1e-4)


def test_sfed_lora_of_one_client_and_rank_one_is_fedsa_lora() -> None:
    model = {**TINY_VIT, "lora": {**LORA, "r": 1}}
    ends = []
    for name in ("sfed_lora", "fedsa_lora"):
        sim = simulate([20], 1, algorithm={"name": name}, model=model)
        ends.append({**play(sim, 2)[0].params, **sim.store.read(0)})
    assert same_bits(*ends)


def test_the_clients_of_a_round_are_those_that_have_images() -> None:
    for per_round, clients in (("all", 3), (2, 2), (0.5, 2)):
        sim = simulate([8, 0, 8, 8], 2, algorithm={"name": "sfed_lora"}, clients={"per_round": per_round})
        assert sim.algorithm.facts.clients_per_round == clients


def test_fedsvd_without_turns_is_ffa_lora() -> None:
    words: list[dict[str, Any]] = [{"name": "fedsvd", "interval": None}, {"name": "ffa_lora"}]
    ends = [play(simulate([20, 9], 2, algorithm=algorithm), 2)[0].params for algorithm in words]
    assert same_bits(*ends)


def test_fedsvd_changes_no_update() -> None:
    """After one round it is FFA-LoRA in other coordinates."""
    ends = [play(simulate([20, 9], 2, algorithm={"name": name}), 1)[0].params for name in ("fedsvd", "ffa_lora")]
    for name in (name for name in ends[0] if name.endswith("lora_a")):
        other = name.replace("lora_a", "lora_b")
        turned_product, product = (end[other].double() @ end[name].double() for end in ends)
        torch.testing.assert_close(turned_product, product, rtol=1e-5, atol=1e-9)
        assert not torch.equal(ends[0][name], ends[1][name])
        rows = ends[0][name].double()
        torch.testing.assert_close(rows @ rows.mT, torch.eye(2).double().expand(3, 2, 2), rtol=0, atol=1e-6)


def test_what_fedsvd_refuses() -> None:
    train = make_config(train={"keep_optimizer": True}).train
    with pytest.raises(KeyedError, match="other coordinates"):
        FedSVD.Config().check_training(train)
    FedSVD.Config(interval=None).check_training(train)
    with pytest.raises(UserError, match=r"model\.lora\.r: found 40 .*; expected at most 32$"):
        simulate([8], 1, algorithm={"name": "fedsvd"}, model={**TINY_VIT, "lora": {**LORA, "r": 40}})
