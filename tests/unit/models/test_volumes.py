"""Volumes through an encoder of images: one slice at a time, the mean of a volume's features, the same in any block."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.build import Parts, assemble
from fedsim.comm.group import open_group
from fedsim.data import ClientImages
from fedsim.errors import UserError
from fedsim.inputs.texts import input_source
from fedsim.models.build import build_models
from fedsim.models.export import export_peft
from fedsim.models.specs import NUM_TOKENS
from fedsim.models.stacked import Counting, StackedModel
from fedsim.models.tuned_tower import TunedTower
from fedsim.schedule.block_size import choose_block_size
from fedsim.simulation import Simulation
from tests.helpers import (
    IMAGE_SIZE,
    LORA,
    SLICES,
    TINY_VIT,
    everything,
    furthest,
    make_config,
    make_volumes,
    play,
    same_bits,
)
from tests.submodels import tiny_submodel

CPU = torch.device("cpu")
MODELS: dict[str, dict[str, Any]] = {
    "lora": {**TINY_VIT, "lora": LORA},
    "head": {**TINY_VIT, "train": "head"},
    "all": {**TINY_VIT, "train": "all"},
    "batch norm": {"name": "timm:test_resnet", "weights": "random", "train": "all"},
    "amplitudes": {**TINY_VIT, "lora": LORA, "amplitude_norm": {}},
}
SIZES = [20, 5, 9]

# Of vmap, under which a whole transformer's attention is not batched.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def build(words: dict[str, Any], slices: int | None = SLICES) -> StackedModel:
    config = make_config(model=words).model
    return build_models(config, IMAGE_SIZE, ["a", "b", "c"], 0, CPU, slices)[0]


def in_double(model: StackedModel) -> None:
    """BatchNorm over a handful of values makes much of float32's rounding."""
    start = model.initial(0)
    model.net.double()
    model._mean = model._mean.double()
    vars(model)["initial"] = lambda _: {n: v.double() if v.is_floating_point() else v for n, v in start.items()}


def simulate_volumes(model: str, per_block: int, **train: Any) -> Simulation:
    dataset, parts = make_volumes(SIZES)
    config = make_config(
        model=MODELS[model], clients={"count": len(SIZES), "per_block": per_block}, train={"batch_size": 4, **train}
    )
    built = build(MODELS[model])
    if model == "batch norm":
        in_double(built)
    return assemble(config, open_group(), Parts(dataset, ClientImages.of(parts), built, built))


@pytest.mark.parametrize("kind", MODELS)
def test_features_are_the_mean_of_the_slices_features(kind: str) -> None:
    volumes, flat = build(MODELS[kind]), build(MODELS[kind], None)
    params = flat.initial(0)
    pixels = torch.rand(4, SLICES, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
    found = volumes.features(params, volumes.prefix(pixels)[None], training=False)
    alone = [flat.features(params, flat.prefix(pixels[:, number])[None], training=False) for number in range(SLICES)]
    assert found.shape == (1, 4, flat.width)
    torch.testing.assert_close(found, torch.stack(alone).mean(0))


@pytest.mark.parametrize("kind", MODELS)
def test_stacked_is_sequential(kind: str) -> None:
    sims = [simulate_volumes(kind, per_block, lr=0.01) for per_block in (1, len(SIZES))]
    alone, together = (play(sim, 1)[0] for sim in sims)
    assert furthest(everything(sims[1], together), everything(sims[0], alone)) < (1e-5, "")


def test_twice_gives_the_same_bits() -> None:
    ends = [play(simulate_volumes("lora", 2), 2)[0].params for _ in range(2)]
    assert same_bits(*ends)


def test_the_frozen_prefix_of_every_slice_is_kept() -> None:
    dataset, _ = make_volumes(SIZES)
    model = build(MODELS["lora"])
    config = make_config(model=MODELS["lora"])
    source = input_source(config, dataset, model)
    places = np.arange(5)
    first = source.evaluation_batch(places)
    assert first.shape[:3] == (1, 5, SLICES)
    calls: list[int] = []
    vars(model)["prefix"] = lambda inputs: calls.append(len(inputs))
    torch.testing.assert_close(source.evaluation_batch(places), first, rtol=0, atol=0)
    assert not calls


def test_the_guess_of_memory_counts_slices() -> None:
    config = make_config(model=MODELS["lora"], clients={"count": 600}, train={"batch_size": 64})
    elements, sizes = [], []
    for slices in (1, 4):
        dataset, _ = make_volumes(SIZES, slices)
        source = input_source(config, dataset, build(MODELS["lora"], slices))
        elements.append(source.num_elements)
        sizes.append(choose_block_size(config, [6] * 600, source.num_elements, 2, CPU))
    assert elements[1] == 4 * elements[0]
    assert sizes[0] > sizes[1]


def test_the_readme_of_an_adapter_says_how_slices_become_volumes(tmp_path: Path) -> None:
    sim = simulate_volumes("lora", 3)
    end, _ = play(sim, 1)
    export_peft(tmp_path, end.params, sim.model)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    mean, std = (torch.tensor(getattr(sim.model.encoder, name)).view(1, 3, 1, 1) for name in ("mean", "std"))
    pixels = (sim.images.images[:5].flatten(0, 1).float() / 255 - mean) / std
    names = {"FOLDER": str(tmp_path), "images": pixels}
    with torch.no_grad():
        exec(code, names)
        expected = sim.model.forward(end.params, sim.images.plain_batch(torch.arange(5)[None]), training=False)[0]
    torch.testing.assert_close(names["logits"], expected, rtol=1e-4, atol=1e-5)


def test_a_sub_model_counts_the_tokens_of_every_slice() -> None:
    pixels = torch.rand(4, SLICES, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
    places = torch.tensor([[True, True, False, True]])
    config = make_config(model={**MODELS["lora"], "submodel": {"folder": tiny_submodel(48)}}).model
    found = []
    for slices in (SLICES, None):
        _, held = build_models(config, IMAGE_SIZE, ["a", "b", "c"], 0, CPU, slices)
        inputs, filled = (pixels, places) if slices else (pixels.flatten(0, 1), places.repeat_interleave(SLICES, 1))
        params = held.initial(0)
        counts = {name: params[name][None].clone() for name, spec in held.specs.items() if spec.kind == "count"}
        held.features(
            params | counts, held.prefix(inputs)[None], training=True, counting=Counting(filled, padding=False)
        )
        found.append(counts)
    assert found[0][NUM_TOKENS].item() > 0
    assert same_bits(*found)


def test_states_of_volumes_are_those_of_their_slices() -> None:
    volumes, flat = build(MODELS["lora"]), build(MODELS["lora"], None)
    assert isinstance(volumes, TunedTower)
    assert isinstance(flat, TunedTower)
    params = flat.initial(0)
    pixels = torch.rand(2, SLICES, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
    found = volumes.states(params, volumes.prefix(pixels))
    for state, expected in zip(found, flat.states(params, flat.prefix(pixels.flatten(0, 1))), strict=True):
        torch.testing.assert_close(state, expected)


def test_clients_are_measured_on_their_own_volumes() -> None:
    dataset, parts = make_volumes(SIZES)
    config = make_config(clients={"count": 3, "per_block": 2}, evaluate={"clients": True, "batch_size": 4})
    built = build(MODELS["lora"])
    _, (record,) = play(assemble(config, open_group(), Parts(dataset, ClientImages.of(parts), built, built)), 1)
    scores = record.row["diagnostics"]["clients"]["val"].values()
    assert scores
    assert all(own["after"]["clients"] for own in scores)


def test_a_model_of_other_slices_is_refused() -> None:
    dataset, _ = make_volumes(SIZES)
    with pytest.raises(UserError, match=r"data.slices: found made up with 3 slices; expected none"):
        input_source(make_config(), dataset, build(MODELS["lora"], None))
