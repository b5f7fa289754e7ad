"""Rounds in which clients hold a sub-model: every method as it is, counts, costs, bytes, and what is exported."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.algorithms.base import TRAINED_KINDS, Phase
from fedsim.config.experiment import dump_config
from fedsim.configure import load_config
from fedsim.errors import UserError
from fedsim.measure.costs import costs
from fedsim.measure.scores import evaluate, evaluation_rows
from fedsim.models.export import export_peft
from fedsim.models.specs import NUM_TOKENS, PROXIES
from fedsim.server import run
from fedsim.simulation import Simulation
from fedsim.verbs import check as plan
from tests.distributed.runs import measured
from tests.helpers import LORA, TINY_VIT, cohort_of, make_config, make_simulation, play, same_bits, simulate
from tests.submodels import tiny_submodel, write_submodel
from tests.unit.inputs.test_texts import make_texts
from tests.unit.models.models_hugging_folders import write_hugging

WIDTH, DEPTH, NEURONS = 32, 2, 128
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"mu": 0.5},
    "ffa_lora": {},
    "deer": {},
    "fedsam": {"radius": 0.1},
    "local": {},
    "ditto": {"strength": 0.5},
    "fednova": {},
    "fedadam": {},
    "moon": {"mu": 5.0},
    "prrfl": {"decide_on": "train"},
}
COUNTING = Phase(kinds=TRAINED_KINDS | {"count"})


def with_submodel(rank: int = 48, **changes: Any) -> dict[str, Any]:
    return {**TINY_VIT, "lora": LORA, "submodel": {"folder": tiny_submodel(rank)}, **changes}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_with_all_neurons_it_is_the_full_model(method: str, precision: str) -> None:
    """Any method on a sub-model that lacks nothing: the same bits, and its own tensors untouched."""
    algorithm = {"name": method, **METHODS[method]}
    models = ({**TINY_VIT, "lora": LORA, "precision": precision}, with_submodel(NEURONS, precision=precision))
    full, held = (simulate([20, 7, 33], 3, algorithm=algorithm, model=model) for model in models)
    (expected, records), (found, others) = play(full, 2), play(held, 2)
    first = held.initial_state().params
    own = {name for name, spec in held.held.specs.items() if spec.kind in ("proxy", "count")}
    assert found.params.keys() - expected.params.keys() == own
    assert same_bits({name: found.params[name] for name in own}, {name: first[name] for name in own})
    assert same_bits({name: found.params[name] for name in expected.params}, expected.params)
    assert same_bits(found.extra, expected.extra)
    for one, other in zip(records, others, strict=True):
        assert one.row["diagnostics"] == other.row["diagnostics"]
        assert one.row["bytes_up"] == other.row["bytes_up"]
    assert evaluate(held, found.params) == evaluate(full, expected.params)


def train(sim: Simulation, clients: tuple[int, ...]) -> dict[str, Tensor]:
    states: list[dict[str, Tensor]] = [{} for _ in clients]
    return dict(sim.trainer.train(clients, cohort_of(*clients), sim.initial_state(), COUNTING, states)[0].after)


def test_ragged_clients_count_as_they_would_alone() -> None:
    """Batches of 16 of clients with 20, 7 and 33 images: 5 tokens each, in every epoch."""
    model = with_submodel(options={**TINY_VIT["options"], "act_layer": "relu"})
    sims = [simulate([20, 7, 33], size, model=model, train={"epochs": 2}) for size in (3, 1)]
    together = train(sims[0], (2, 0, 1))
    assert together[NUM_TOKENS].tolist() == [2 * 5 * size for size in (33, 20, 7)]
    for row, client in enumerate((2, 0, 1)):
        alone = train(sims[1], (client,))
        for name, value in alone.items():
            torch.testing.assert_close(together[name][row], value[0], rtol=1e-4, atol=1e-5)
    zeros = together["zeros.1"].sum(1) / (together[NUM_TOKENS] * 48)
    assert (zeros > 0.2).all()
    assert (zeros < 0.8).all()


def test_bytes_down_count_what_the_server_may_align() -> None:
    sim = simulate([20, 7], 2, model=with_submodel())
    _, (record,) = play(sim, 1)
    factors, head, cut = 2 * DEPTH * 3 * 2 * WIDTH, 3 * WIDTH + 3, DEPTH * (48 * (2 * WIDTH + 1) + WIDTH)
    assert record.row["bytes_up"] == 2 * 4 * (factors + head)
    assert record.row["bytes_down"] == 2 * 4 * (factors + head + cut)


def network(neurons: int) -> tuple[int, int]:
    """Numbers in the linear layers of the blocks, and all others, of TINY_VIT with 14 x 14 images."""
    attention = WIDTH * 3 * WIDTH + 3 * WIDTH + WIDTH * WIDTH + WIDTH
    blocks = DEPTH * (attention + 2 * neurons * WIDTH + neurons + WIDTH)
    norms, patches, positions = (2 * DEPTH + 1) * 2 * WIDTH, 3 * 49 * WIDTH + WIDTH, (5 + 1) * WIDTH
    return blocks, norms + patches + positions


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("bf16", 2)])
def test_costs(precision: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(model=with_submodel(precision=precision))
    sim = simulate([20, 7], 2, model=with_submodel(precision=precision))
    trained = 2 * DEPTH * 3 * 2 * WIDTH + 3 * WIDTH + 3
    found = costs(sim)
    for name, neurons in (("full_model", NEURONS), ("submodel", 48)):
        products, others = network(neurons)
        expected = {
            "parameters": products + others + trained,
            "bytes": size * products + 4 * (others + trained),
            "bytes_sent": 4 * trained,
        }
        assert found[name] == expected
    monkeypatch.setattr(plan, "build_simulation", lambda *_: sim)
    rows = dict(plan.describe(config))
    sub = found["submodel"]
    held = f"{sub['parameters']:,} parameters in {sub['bytes']:,} bytes"
    assert rows["a client's submodel"] == f"{held}, {4 * trained:,} bytes sent per round"
    assert costs(simulate([20], 1)).keys() == {"full_model"}


def test_counts_are_among_the_bytes_that_a_sub_model_sends() -> None:
    sim = simulate([20, 7], 2, model=with_submodel(), algorithm={"name": "fedpft"})
    found = costs(sim)
    assert found["submodel"]["bytes_sent"] - found["full_model"]["bytes_sent"] == 4 * (DEPTH * 48 + 1)


def scores_of_readme(folder: Path, **given: Any) -> Tensor:
    """What the exported README's own lines give."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {"FOLDER": str(folder), **given}
    with torch.no_grad():
        exec(code, found)
    return found["logits"]  # type: ignore[no-any-return]  # the README's


def exported(sim: Simulation, folder: Path, **given: Any) -> None:
    """Train on the sub-model, export, and compare the adapter on the whole model with what was evaluated."""
    state = play(sim, 2)[0]
    export_peft(folder, state.params, sim.model, sim.config.data.max_tokens)
    rows = evaluation_rows(sim.task, sim.model, state.params, sim.images, sim.dataset.test, 5, sim.group)
    torch.testing.assert_close(scores_of_readme(folder, **given), rows, rtol=1e-4, atol=1e-5)
    on_held = evaluation_rows(sim.task, sim.held, state.params, sim.images, sim.dataset.test, 5, sim.group)
    assert not torch.allclose(on_held, rows, atol=1e-3)


@pytest.mark.parametrize("how", ["cut", "dropped"])
def test_the_adapter_of_a_transformer_for_images(how: str, tmp_path: Path) -> None:
    lora = {**LORA, "target": ["q", "k", "v", "proj"]}
    submodel = {"folder": tiny_submodel(48)} if how == "cut" else {"layers": [1]}
    sim = simulate([20, 7], 2, model={**TINY_VIT, "lora": lora, "submodel": submodel}, train={"lr": 0.5})
    norm = sim.model.encoder
    pixels = sim.dataset.images[sim.dataset.test].float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (norm.mean, norm.std))
    exported(sim, tmp_path, images=(pixels - mean) / std)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("how", ["cut", "dropped"])
def test_the_adapter_of_a_transformer_for_texts(how: str, kind: str, tmp_path: Path) -> None:
    write_hugging(tmp_path / "model", kind)
    lora = {"r": 2, "lora_alpha": 4, "target": ["q", "k", "v", "proj"]}
    words = {"name": f"hf:{tmp_path}/model", "lora": lora}
    submodel: dict[str, Any] = {"layers": [0, 2]}
    if how == "cut":
        submodel = {"folder": write_submodel(tmp_path / "half", words, layers_retained=[0], intermediate_rank=20)}
    dataset, parts = make_texts([17, 5, 9], pairs=False, targets=False)
    config = make_config(
        model={**words, "submodel": submodel},
        clients={"count": 3, "per_block": 3},
        data={"name": "rated_sentences", "image_size": 28},
        train={"batch_size": 4, "lr": 0.02},
    )
    sim = make_simulation(config, dataset, parts)
    assert "blocks.2.attention.output.dense.lora_a" in sim.held.specs
    exported(sim, tmp_path / "adapter", texts=[dataset.texts[place][0] for place in dataset.test])  # type: ignore[index]


MISTAKES = [
    (
        "{folder: DIR, layers: [0]}",
        "model.submodel.folder: found folder and layers; expected one of them; the other nul",
    ),
    ("{}", "model.submodel.folder: found neither folder nor layers; expected one of them; the other null"),
    ("{layers: []}", "model.submodel.layers: found []; expected a list of at least 1"),
    ("{layers: [1, 0]}", "model.submodel.layers: found [1, 0]; expected layers in rising order, each once"),
    ("{layers: [1, 1]}", "model.submodel.layers: found [1, 1]; expected layers in rising order, each once"),
    ("{layers: [-1]}", "model.submodel.layers.0: found -1; expected at least 0"),
    ("{folder: nowhere}", "model.submodel.folder: found no folder 'nowhere'; expected a folder that exists"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes_in_a_config(words: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    text = "name: x\nrounds: 1\nmodel: {name: 'packaged:vit_small_dino', lora: {}, submodel: WORDS}\n"
    text += "data: {name: digits, image_size: 14}\nclients: {count: 1, partition: {name: iid}}\ntrain: {lr: 0.1}\n"
    path.write_text(text.replace("WORDS", words.replace("DIR", str(tmp_path))))
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            "model.lora=null model.train=head model.submodel={layers:[0]}",
            "model.submodel: found a sub-model with train: he",
        ),
        (
            "model.lora={layers:[1]} model.submodel={layers:[0,2]}",
            "model.lora.layers: found 1, which clients do not hold",
        ),
        ("model.lora={layers:[2,1]}", "model.lora.layers: found [2, 1]; expected layers in rising order, each once"),
    ],
)
def test_what_does_not_fit_together(changes: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    text = "name: x\nrounds: 1\nmodel: {name: 'packaged:vit_small_dino', lora: {}}\n"
    text += "data: {name: digits, image_size: 14}\nclients: {count: 1, partition: {name: iid}}\ntrain: {lr: 0.1}\n"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(path, overrides(changes))


def overrides(changes: str) -> list[str]:
    """``key=value`` words, with the blank that YAML wants behind a colon."""
    return [change.replace(":", ": ") for change in changes.split()]


def test_lora_may_leave_layers_out() -> None:
    sim = simulate([20], 1, model={**TINY_VIT, "lora": {**LORA, "layers": [1]}})
    adapted = {name for name, spec in sim.held.specs.items() if spec.kind.startswith("lora")}
    assert adapted == {"blocks.1.attn.qkv.lora_a", "blocks.1.attn.qkv.lora_b"}
    state = play(sim, 1)[0]
    assert np.isfinite(evaluate(sim, state.params)["test"]["loss"])
    assert not [name for name in state.params if name.startswith(PROXIES)]


def test_a_whole_run_and_its_folder(tmp_path: Path) -> None:
    """From the config to results.json and back: what is saved measures as it did, and the costs stand there."""
    config = make_config(
        seed=0,  # of the random weights that the sub-model was made of
        rounds=2,
        algorithm={"name": "fedpft", "distill": {"epochs": 0.05, "batch_size": 16, "micro_batch": 16}},
        model=with_submodel(),
        data={"max_train": 60},
        clients={"count": 3},
    )
    (tmp_path / "config.yaml").write_text(dump_config(config))
    results = run(load_config(tmp_path / "config.yaml"), tmp_path / "run", resume=False)
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    assert saved["costs"] == results["costs"]
    assert saved["costs"]["submodel"]["parameters"] < saved["costs"]["full_model"]["parameters"]
    assert measured(tmp_path / "run", "best") == {split: results[split] for split in ("val", "test")}
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
