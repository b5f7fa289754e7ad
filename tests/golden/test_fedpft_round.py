"""A whole round of FedPFT against the released code's (fedpft_round_*.npz), through our own trainer and distillation.

Clients tune the sub-model by plain SGD in stored order, one pass, batches of two; the sub-model is then aligned, in two
steps. ``form: released``. The release's own tolerance is 9e-6 against float64, on hidden states of size up to 20.
RoBERTa's classifier has two layers there, which the test gives our model.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms.base import Aggregate, ServerState
from algorithms.fedpft import apoz
from fedsim import distill
from fedsim.models.specs import NUM_TOKENS, ZEROS
from fedsim.public import PublicInputs
from fedsim.simulation import Simulation
from tests.golden.fedpft_round import CASES, Round, StoredInputs
from tests.helpers import make_config, make_simulation, play, record_phases

CLOSE = {"rtol": 1e-5, "atol": 2e-5}
LAYERS = (1, 2)


def simulate(golden: Round, per_block: int) -> Simulation:
    words = golden.info["stub_trainer"]
    steps = {"epochs": words["epochs"], "batch_size": words["batch_size"], "micro_batch": words["batch_size"]}
    plain = {"optimizer": "sgd", "lr": words["align_lr"], "warmup": 0.0, "clip_norm": None}
    config = make_config(
        rounds=1,
        model=golden.full.config.model_dump(),
        algorithm={
            "name": "fedpft",
            "form": "released",
            "retained_ratio": golden.info["align_retained_ratio"],
            "distill": {**steps, **plain},
        },
        clients={"count": len(golden.parts), "per_block": per_block, "weighting": "uniform"},
        train={
            "lr": words["client_lr"],
            "momentum": 0.0,
            "batch_size": words["batch_size"],
            "epochs": words["epochs"],
            "shuffle": False,
        },
    )
    sim = make_simulation(config, golden.dataset, golden.parts, golden.full, golden.held)
    sim.images = sim.trainer.images = StoredInputs(golden.dataset, golden.full, ())
    sim.public = PublicInputs(sim.images, golden.places["align_data"])
    return sim


def watch(sim: Simulation, random_seed: int) -> dict[str, Any]:
    """Note the round's aggregate and what is aligned; the neurons are shuffled with the released seed."""
    seen: dict[str, Any] = {}
    method = sim.algorithm
    align = method.align

    def watched(state: ServerState, aggregate: Aggregate, seed: int) -> Any:
        del seed
        seen.update(aggregate=aggregate, plugged_in=state.params, wanted=align(state, aggregate, random_seed))
        return seen["wanted"]

    vars(method)["align"] = watched
    return seen


@pytest.fixture(scope="module", params=[(case, 2) for case in CASES] + [("roberta", 1)], ids=str)
def played(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The file, what the clients' phase gave, the state after the round, its record, and what ``watch`` saw."""
    case, per_block = request.param
    golden = Round(case, tmp_path_factory.mktemp(case))
    sim = simulate(golden, per_block)
    seen = watch(sim, int(golden.arrays["align/random_seed"]))
    phases = record_phases(sim)
    start = ServerState(0, sim.initial_state().params | golden.params("adapter_init"))
    for model, name in ((golden.full, "logits_full_before"), (golden.held, "logits_sub_before")):
        torch.testing.assert_close(golden.logits(model, start.params), golden.get(name), **CLOSE)
    with pytest.MonkeyPatch.context() as patch:
        # The file's distillation has no schedule and takes its inputs as they are stored.
        patch.setattr(distill, "learning_rate", lambda settings, *_: settings.lr)
        patch.setattr(distill, "numpy_stream", lambda *_, **__: SimpleNamespace(permutation=lambda places: places))
        state, (record,) = play(sim, 1, start)
    return golden, phases[0], state, record, seen


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def test_client_training_on_the_sub_model(played: Any) -> None:
    golden, phase, _, record, seen = played
    losses = {row["client"]: row["train_loss"] for row in record.client_rows}
    counted: dict[str, Tensor] = {}
    for client in golden.clients:
        after = phase["after"][client]
        assert_close(after, golden.params(f"client{client}/adapter_out"))
        expected = golden.arrays[f"client{client}/train_losses"].mean()
        assert losses[client] == pytest.approx(expected, rel=1e-5)
        assert after[NUM_TOKENS] == golden.arrays[f"client{client}/na"]
    for layer in LAYERS:
        counted[layer] = sum(phase["after"][client][f"{ZEROS}{layer}"] for client in golden.clients)
        expected = sum(golden.get(f"client{client}/nza_layer{layer}") for client in golden.clients)
        assert ((counted[layer] - expected).abs() <= golden.get(f"nza_borderline_layer{layer}")).all()
        torch.testing.assert_close(seen["aggregate"].total[f"{ZEROS}{layer}"], counted[layer])


def test_aggregation_and_plug_in(played: Any) -> None:
    golden, _, state, _, seen = played
    assert_close(state.params, golden.params("adapter_aggregated"))
    expected = golden.get("logits_full_after_plugin")
    torch.testing.assert_close(golden.logits(golden.full, seen["plugged_in"]), expected, **CLOSE)
    # The alignment changes nothing that the full model has.
    torch.testing.assert_close(golden.logits(golden.full, state.params), expected, **CLOSE)


def test_choice_of_neurons(played: Any) -> None:
    golden, _, _, record, seen = played
    total = seen["aggregate"].total
    for layer in LAYERS:
        found = apoz(total[f"{ZEROS}{layer}"], total[NUM_TOKENS])
        slack = golden.arrays[f"nza_borderline_layer{layer}"] / total[NUM_TOKENS].item() + 1e-6
        assert (np.abs(found.numpy() - golden.arrays[f"APoZ_layer{layer}"]) <= slack).all()
        inner, outer = (seen["wanted"].trained[name] for name in matrices(golden, layer))
        updated = set(golden.arrays[f"align/layer{layer}/other_neuron_updated"].tolist())
        assert set(inner.any(1).nonzero()[:, 0].tolist()) == set(outer.any(0).nonzero()[:, 0].tolist()) == updated
        assert (inner.all(1) | ~inner.any(1)).all()
    mean = np.mean([golden.arrays[f"APoZ_layer{layer}"] for layer in LAYERS])
    assert record.row["diagnostics"]["train"]["apoz"] == pytest.approx(mean, abs=1e-3)


def test_the_student_carries_the_last_clients_adapter(played: Any) -> None:
    golden, phase, _, _, seen = played
    (last,) = golden.arrays["align/student_adapter_is_that_of_client"].tolist()
    student = seen["wanted"].student
    assert set(student) == {name for name in golden.params("adapter_init") if "lora" in name}
    for name, value in student.items():
        torch.testing.assert_close(value, phase["after"][last][name], rtol=0, atol=1e-9)


def test_alignment(played: Any) -> None:
    golden, _, state, record, seen = played
    first, last = golden.arrays["align/losses"].tolist()
    found = record.row["diagnostics"]["alignment"]
    assert found["steps"] == 2
    assert (found["first_loss"], found["last_loss"]) == pytest.approx((first, last), rel=5e-5)
    after = golden.proxies("align/after")
    for name, mask in seen["wanted"].trained.items():
        before = seen["plugged_in"][name]
        torch.testing.assert_close(state.params[name][~mask], before[~mask], rtol=0, atol=0)
        if name in after:
            torch.testing.assert_close(state.params[name], after[name], **CLOSE)
        else:
            torch.testing.assert_close(state.params[name], before, rtol=0, atol=1e-6)
    # The released sub-model scores with the last client's adapter and classifier: the stored ones, since RoBERTa's
    # large weights make 1e-4 of a score out of our own last bits.
    (client,) = golden.arrays["align/student_adapter_is_that_of_client"].tolist()
    sub = state.params | golden.params(f"client{client}/adapter_out")
    torch.testing.assert_close(golden.logits(golden.held, sub), golden.get("align/logits_sub_after"), **CLOSE)


def matrices(golden: Round, layer: int) -> tuple[str, str]:
    """Our names of a layer's inner and outer matrix."""
    names = [
        n
        for n in golden.held.specs
        if n.startswith(f"submodel.blocks.{layer}.") and golden.held.specs[n].neuron_axis is not None
    ]
    matrices = [n for n in names if n.endswith("weight")]
    inner, outer = sorted(matrices, key=lambda n: golden.held.specs[n].neuron_axis or 0)
    return inner, outer
