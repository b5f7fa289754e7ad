"""A whole round of FedPFT against the released code's (fedpft_round_*.npz), through our own trainer and distillation.

Clients tune the sub-model by plain SGD in stored order, one pass, batches of two; the sub-model is then aligned, in two
steps. ``form: released``. The release's own tolerance is 9e-6 against float64, on hidden states of size up to 20.
RoBERTa's classifier has two layers there, which the test gives our model.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.algorithms.base import Aggregate, ServerState
from fedsim.algorithms.fedpft import COUNTS, apoz, neurons_to_distil
from fedsim.distill import distiller as distill
from fedsim.inputs.public import PublicInputs
from fedsim.models.specs import NUM_TOKENS, ZEROS
from fedsim.simulation import Simulation
from tests.golden.clip import assert_close
from tests.golden.fedpft_round import CASES, PEFT, Round, StoredInputs
from tests.helpers import make_config, make_simulation, play, record_phases


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
    images = sim.trainer.images = StoredInputs(golden.dataset, golden.full, ())
    return replace(sim, images=images, public=PublicInputs(images, golden.places["align_data"]))


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


@pytest.fixture(scope="module", params=[(case, "stacked") for case in CASES] + [("roberta", "sequential")], ids=str)
def played(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The file, what the clients' phase gave, the state after the round, its record, and what ``watch`` saw."""
    case, way = request.param
    golden = Round(case, tmp_path_factory.mktemp(case))
    sim = simulate(golden, len(golden.clients) if way == "stacked" else 1)
    seen = watch(sim, int(golden.arrays["align/random_seed"]))
    phases = record_phases(sim)
    start = ServerState(0, sim.initial_state().params | golden.params("adapter_init"))
    for model, name in ((golden.full, "logits_full_before"), (golden.held, "logits_sub_before")):
        assert_close(golden.logits(model, start.params), golden.get(name), name)
    with pytest.MonkeyPatch.context() as patch:
        # The file's distillation has no schedule and takes its inputs as they are stored.
        patch.setattr(distill, "learning_rate", lambda settings, *_: settings.lr)
        patch.setattr(distill, "numpy_stream", lambda *_, **__: SimpleNamespace(permutation=lambda places: places))
        state, (record,) = play(sim, 1, start)
    return golden, phases[0], state, record, seen


def assert_all_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, value in expected.items():
        assert_close(found[name], value, name)


def test_what_trains(played: Any) -> None:
    """Names: of the layers with LoRA, of what clients train, and of what alignment trains."""
    golden, phase, _, _, seen = played
    matched = {name.removeprefix(PEFT) for name in golden.arrays["lora_modules_matched"]}
    assert {path for layer in golden.full.lora_layers for path in golden.released_paths(layer.path)} == matched
    ours = golden.params("adapter_init").keys()
    assert set(golden.arrays["adapter_keys"]) == golden.tensors_below("adapter_init/").keys()
    specs = golden.held.specs
    for client in golden.clients:
        assert {name for name in phase["after"][client] if specs[name].kind != "count"} == ours
    # PEFT keeps a second classifier, which no input reaches.
    trainable = {name for name in golden.arrays["client_trainable"] if ".original_module." not in name}
    plain = {name.replace(".default.", ".").replace(".modules_to_save.", ".") for name in trainable}
    assert plain == set(golden.arrays["adapter_keys"])
    # The release's student has the two shares of a layer's neurons as two layers, of which dense2 trains.
    aligned = {re.sub(r"split_|(?<=dense)2", "", name) for name in golden.arrays["align/trainable"]}
    names = {f"student.{theirs.partition('.')[2]}": name for theirs, name in golden.proxy_names().items()}
    assert {names[name] for name in aligned} == seen["wanted"].trained.keys()


def test_client_training_on_the_sub_model(played: Any) -> None:
    golden, phase, _, record, seen = played
    losses = {row["client"]: row["train_loss"] for row in record.client_rows}
    counted: dict[str, Tensor] = {}
    for client in golden.clients:
        after = phase["after"][client]
        assert_all_close(after, golden.params(f"client{client}/adapter_out"))
        expected = golden.arrays[f"client{client}/train_losses"].mean()
        assert losses[client] == pytest.approx(expected, rel=1e-5)
        assert after[NUM_TOKENS] == golden.arrays[f"client{client}/na"]
    for layer in golden.cut:
        counted[layer] = sum(phase["after"][client][f"{ZEROS}{layer}"] for client in golden.clients)
        expected = sum(golden.get(f"client{client}/nza_layer{layer}") for client in golden.clients)
        assert ((counted[layer] - expected).abs() <= golden.get(f"nza_borderline_layer{layer}")).all()
        torch.testing.assert_close(seen["aggregate"].total[COUNTS][f"{ZEROS}{layer}"], counted[layer])


def test_aggregation_and_plug_in(played: Any) -> None:
    golden, _, state, _, seen = played
    assert_all_close(state.params, golden.params("adapter_aggregated"))
    expected = golden.get("logits_full_after_plugin")
    assert_close(golden.logits(golden.full, seen["plugged_in"]), expected)
    # The alignment changes nothing that the full model has.
    assert_close(golden.logits(golden.full, state.params), expected)


def test_choice_of_neurons(played: Any) -> None:
    golden, _, _, record, seen = played
    total = seen["aggregate"].total[COUNTS]
    for layer in golden.cut:
        found = apoz(total[f"{ZEROS}{layer}"], total[NUM_TOKENS])
        slack = golden.arrays[f"nza_borderline_layer{layer}"] / total[NUM_TOKENS].item() + 1e-6
        assert (np.abs(found.numpy() - golden.arrays[f"APoZ_layer{layer}"]) <= slack).all()
        inner, outer = (seen["wanted"].trained[name] for name in matrices(golden, layer))
        start = f"align/layer{layer}"
        updated = set(golden.arrays[f"{start}/other_neuron_updated"].tolist())
        assert set(range(golden.info["intermediate_rank"])) - updated == set(golden.arrays[f"{start}/retained_neuron"])
        assert set(inner.any(1).nonzero()[:, 0].tolist()) == set(outer.any(0).nonzero()[:, 0].tolist()) == updated
        assert (inner.all(1) | ~inner.any(1)).all()
        # The same from the file's own counts, in the order of its shuffled list.
        zeros = sum(golden.get(f"client{client}/nza_layer{layer}") for client in golden.clients)
        shuffle = partial(put_in_order, golden.arrays[f"{start}/shuffled_index"].tolist())
        chosen = neurons_to_distil(zeros, golden.info["align_retained_ratio"], shuffle)
        assert set(chosen.nonzero()[:, 0].tolist()) == updated
    mean = np.mean([golden.arrays[f"APoZ_layer{layer}"] for layer in golden.cut])
    assert record.row["diagnostics"]["train"]["apoz"] == pytest.approx(mean, abs=1e-3)


def test_the_student_carries_the_last_clients_adapter(played: Any) -> None:
    golden, phase, _, _, seen = played
    (last,) = golden.arrays["align/student_adapter_is_that_of_client"].tolist()
    student = seen["wanted"].student
    assert set(student) == {name for name in golden.params("adapter_init") if "lora" in name}
    for name, value in student.items():
        torch.testing.assert_close(value, phase["after"][last][name], rtol=0, atol=1e-9)
    assert golden.arrays["order_of_returned_models"][-1] == last
    adapter = golden.params("adapter_init")  # with the classifier
    away = max((phase["after"][last][name] - phase["server"][name]).abs().max().item() for name in adapter)
    assert away == pytest.approx(golden.arrays["align/student_adapter_minus_aggregated_maxabs"].item(), rel=1e-4)


def test_alignment(played: Any) -> None:
    golden, _, state, record, seen = played
    losses = golden.arrays["align/losses"].tolist()
    found = record.row["diagnostics"]["alignment"]
    assert found["steps"] == len(losses)
    assert (found["first_loss"], found["last_loss"]) == pytest.approx((losses[0], losses[-1]), rel=5e-5)
    after = golden.proxies("align/after")
    changed = {name.removeprefix(PEFT) for name in golden.arrays["align/changed_keys"]}
    assert {golden.proxy_names()[name] for name in changed} == after.keys()
    for name, mask in seen["wanted"].trained.items():
        before = seen["plugged_in"][name]
        torch.testing.assert_close(state.params[name][~mask], before[~mask], rtol=0, atol=0)
        if name in after:
            assert_close(state.params[name], after[name], name)
        else:
            torch.testing.assert_close(state.params[name], before, rtol=0, atol=1e-6)
    # The released sub-model scores with the last client's adapter and classifier: the stored ones, since RoBERTa's
    # large weights make 1e-4 of a score out of our own last bits.
    (client,) = golden.arrays["align/student_adapter_is_that_of_client"].tolist()
    sub = state.params | golden.params(f"client{client}/adapter_out")
    assert_close(golden.logits(golden.held, sub), golden.get("align/logits_sub_after"))


def put_in_order(order: list[int], numbers: list[int]) -> None:
    """Change the numbers' order to this one, as a shuffle that had it for its result."""
    assert sorted(numbers) == sorted(order)
    numbers[:] = order


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
