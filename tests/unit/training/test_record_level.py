"""DP-SGD inside clients: every image's gradient by itself, cut, and added up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedsim.data import Dataset
from fedsim.simulation import Simulation
from tests.helpers import (
    LORA,
    TINY_VIT,
    everything,
    furthest,
    make_config,
    make_dataset,
    make_simulation,
    make_volumes,
    play,
    simulate,
)
from tests.unit.inputs.test_texts import make_texts
from tests.unit.models.models_clip_folders import write_clip
from tests.unit.models.models_hugging_folders import write_hugging
from tests.unit.training.private_steps import (
    PATHS,
    SIZES,
    STILL,
    away_from_zero,
    batches,
    gradients,
    norm,
    one_by_one,
    protected,
    use,
)


def pictures(sizes: Sequence[int], side: int) -> tuple[Dataset, list[np.ndarray]]:
    dataset, parts = make_dataset(sizes)
    larger = F.interpolate(dataset.images.float(), side).to(torch.uint8)
    return replace(dataset, images=larger), parts


@dataclass(frozen=True)
class Case:
    """A model, its data, and how it is written to a folder."""

    model: dict[str, Any]
    data: Callable[[], tuple[Dataset, list[np.ndarray]]] = lambda: make_dataset(SIZES)
    write: Callable[[Path], object] | None = None
    side: int = 14
    algorithm: str = "fedavg"


CLIP = {"name": "open_clip:local-dir:{}", "train_logit_scale": True, "classifier": "text"}
CASES = {
    "qkv": Case({**TINY_VIT, "lora": LORA}),
    "q and v": Case({**TINY_VIT, "lora": {**LORA, "target": ["q", "v"]}}),
    "all linear layers": Case({**TINY_VIT, "lora": {**LORA, "r": 3, "target": ["q", "k", "v", "proj", "fc1", "fc2"]}}),
    "head only": Case({**TINY_VIT, "train": "head"}),
    "volumes": Case({**TINY_VIT, "lora": LORA}, lambda: make_volumes(SIZES)),
    "volumes, head only": Case({**TINY_VIT, "train": "head"}, lambda: make_volumes(SIZES)),
    "B only": Case({**TINY_VIT, "lora": LORA}, algorithm="ffa_lora"),
    "open_clip, text": Case(
        {**CLIP, "lora": {**LORA, "target": ["q", "v", "c_fc", "c_proj"]}},
        lambda: pictures(SIZES, 32),
        write_clip,
        32,
    ),
    "Hugging Face's ViT": Case(
        {"name": "hf:{}", "lora": {**LORA, "target": ["q", "k", "v", "fc1", "fc2"]}},
        lambda: pictures(SIZES, 16),
        lambda path: write_hugging(path, "vit"),
        16,
    ),
    "BERT": Case({"name": "hf:{}", "lora": LORA}, lambda: make_texts(SIZES, True, False), write_hugging, 28),
    "BERT, numbers": Case({"name": "hf:{}", "lora": LORA}, lambda: make_texts(SIZES, True, True), write_hugging, 28),
}


def simulation_of(case: Case, folder: Path, per_block: int, bound: float, **train: Any) -> Simulation:
    dataset, parts = case.data()
    if case.write is not None and not any(folder.iterdir()):
        case.write(folder)
    config = make_config(
        model={**case.model, "name": case.model["name"].format(folder)},
        data={"name": "rated_sentences" if dataset.texts else "digits", "image_size": case.side},
        clients={"count": len(parts), "per_block": per_block},
        train={"batch_size": 3, "momentum": 0.0, "lr": 0.02, "epochs": None, "steps": 3, **train},
        evaluate={"best_by": "loss"},
        algorithm={"name": case.algorithm},
        privacy=protected(bound),
    )
    return make_simulation(config, dataset, parts)


@PATHS
@pytest.mark.parametrize("name", CASES)
def test_a_step_is_the_sum_of_gradients_cut_one_by_one(
    name: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(path, monkeypatch)
    case, clients = CASES[name], (0, 1, 2)
    sim = simulation_of(case, tmp_path, 3, 1.0)
    state = away_from_zero(sim, sim.initial_state())
    kinds = sim.algorithm.phases(1)[0].kinds
    trained = {n: v for n, v in state.params.items() if sim.held.specs[n].kind in kinds}
    own = [{n: g[n] for n in trained} for g in one_by_one(sim, state.params, sim.parts[0])]
    bound = float(np.median([norm(each) for each in own]))
    sim = simulation_of(case, tmp_path, 3, bound)
    shares = []
    seen = gradients(sim, clients, state)
    for step, (params, found) in enumerate(seen):
        for row, drawn in enumerate(batches(sim, clients)):
            here = {**state.params, **{n: v[row] for n, v in params.items()}}
            images = [{n: each[n] for n in params} for each in one_by_one(sim, here, drawn[step])]
            factors = [min(1.0, bound / norm(each)) for each in images]
            expected = {n: torch.zeros_like(v[row]) for n, v in params.items()}
            for each, factor in zip(images, factors, strict=True):
                expected = {n: v + factor * each[n] / min(3, SIZES[row]) for n, v in expected.items()}
            # Of what is added up, since images may all but cancel each other.
            size = sum(factor * norm(each) for each, factor in zip(images, factors, strict=True)) / min(3, SIZES[row])
            assert norm({n: v[row] - expected[n] for n, v in found.items()}) <= 1e-5 * size
            shares += factors
    assert len(seen) == 3
    assert min(shares) < 1
    assert max(shares) == 1


@PATHS
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nobodys_share_exceeds_the_bound(precision: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of one image, whose gradient is then their step's."""
    use(path, monkeypatch)
    model = {**TINY_VIT, "lora": LORA, "precision": precision}
    bound = 1e-3
    sim = simulate([1] * 20, 20, model=model, privacy=protected(bound), train=STILL)
    state = away_from_zero(sim, sim.initial_state())
    ((_, found),) = gradients(sim, range(20), state)
    for row in range(20):
        size = norm({name: value[row] for name, value in found.items()})
        assert bound * (1 - 1e-5) < size <= bound


@PATHS
def test_bf16_cuts_nearly_what_fp32_does(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(path, monkeypatch)
    found = []
    for precision in ("fp32", "bf16"):
        model = {**TINY_VIT, "lora": LORA, "precision": precision}
        sim = simulate(SIZES, 3, model=model, privacy=protected(0.5), train={**STILL, "batch_size": 3})
        found.append(gradients(sim, (0, 1, 2), away_from_zero(sim, sim.initial_state()))[0][1])
    assert furthest(found[1], found[0])[0] < 0.1


METHODS = {
    "fedavg": {},
    "deer": {},
    "dp_dylora": {},
    "ffa_lora": {},
    "rolora": {},
    "fedsa_lora": {},
    "sfed_lora": {},
    "scaffold": {"train": {"momentum": 0.0, "batch_size": 4}},
    "feddyn": {},
    "fedadam": {},
    "fednova": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_block_gives_what_its_clients_give_one_by_one(method: str) -> None:
    sizes = (12, 5, 0, 2, 7)
    sections = {"train": {"batch_size": 4, "epochs": 2}, **METHODS[method]}
    sections |= {"algorithm": {"name": method}, "privacy": protected(0.5, 0.7), "data": {"augment": ["flip", "crop"]}}
    sims = [simulate(sizes, size, **sections) for size in (1, 2, 5)]
    ends = [everything(sim, play(sim, 2)[0]) for sim in sims]
    limit = 1e-4 if method == "scaffold" else 1e-5
    assert furthest(ends[1], ends[0]) < (limit, "")
    assert furthest(ends[2], ends[0]) < (limit, "")
    assert sims[2].trainer.agreement is not None


@PATHS
@pytest.mark.parametrize("target", [["q", "k", "v"], ["q", "k", "v", "proj", "fc1", "fc2"]], ids=["qkv", "all"])
def test_images_that_are_nobodys_count_nothing(target: list[str], path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of 24 expected images takes them by threes; clients one by one as they come."""
    use(path, monkeypatch)
    model = {**TINY_VIT, "lora": {**LORA, "target": target}}
    words = {"model": model, "train": {"batch_size": 8}, "privacy": protected(0.5, 0.7)}
    one, block = (simulate([40, 30, 25], size, **words) for size in (1, 3))
    sizes = [sum(map(len, step)) for step in zip(*batches(block, (0, 1, 2)), strict=False)]
    assert any(size % 3 for size in sizes)
    assert furthest(play(block, 2)[0].params, play(one, 2)[0].params) < (1e-5, "")
